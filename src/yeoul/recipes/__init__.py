"""What the verbs do, as functions: each opens what it needs, says what it is about to do, and gives a value."""
