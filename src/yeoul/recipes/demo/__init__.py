"""From text to a linear-time language model and a report, within a given time."""
