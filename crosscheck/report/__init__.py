"""Stage 10, report: a `Report` becomes text, JSON or HTML. Renders, never computes.

| module | gives |
|---|---|
| `words` | the numbers, names and sentences that every rendering shares |
| `headline` | the verdict in a few lines, coverage and notes, as plain lines |
| `figures`, `tables` | bars of ratio by site; tables of sites |
| `terminal` | all of these together, as text |
| `json`, `html` | ``report.json`` (schema 1), a self-contained page |
| `write` | a file, whole or not at all |

Nothing is imported here: each rendering is loaded when it is asked for.
"""
