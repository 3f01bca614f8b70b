"""How the state of linear attention takes in a token and is read, by name; each has a file of that name here.

| name | state | source |
|---|---|---|
| additive | S + phi(k) v^T, with a decay or without | Katharopoulos and others, arXiv 2006.16236, section 3 |
| delta | the gated delta rule | Yang and others, arXiv 2412.06464, section 3 |
| retention | additive with RetNet's fixed decay of each head | Sun and others, arXiv 2307.08621, section 2 |
"""
