"""Stage 10, report: a `Report` becomes text, JSON, HTML and other files. Renders, never computes.

| module | gives |
|---|---|
| `words` | the numbers, names and sentences that every rendering shares |
| `headline`, `probes` | the verdict in a few lines, coverage and notes, as plain lines |
| `figures`, `tables` | bars of ratio by site; tables of sites |
| `terminal` | all of these together, as text |
| `json`, `load` | ``report.json`` (schema 1), and a `Report` from it |
| `html` | a self-contained page |
| `markdown`, `junit`, `oneline` | a comment, a result for CI, one line |
| `write` | a file, whole or not at all |

Nothing is imported here: each rendering is loaded when it is asked for.
"""
