"""Many pairs, each candidate and seed in a process of its own: `crosscheck suite`.

| module | gives |
|---|---|
| `find`, `select` | the pairs below some folders; which of their jobs `-k` means |
| `jobs` | what is to be done, what came of it: frozen, plain data |
| `run` | `run_suite`: list, select, skip what a log holds, run, collect |
| `engine` | what runs tasks; `local` does it with processes on this machine |
| `split` | a job in parts, and its parts as one |
| `ray_engine` | the same on many machines: what is lost is started again, nothing counts twice |
| `ray_cluster`, `ray_tasks` | the only calls of Ray; what runs on the cluster's machines |
| `ray_shared` | what the candidates of one pair share, from machine to machine |
| `worker` | the child: does one task, writes one answer |
| `processes`, `guardian` | trees of processes: how much memory they hold, how none is left behind |
| `classify` | how a process ended -> what is said of the job |
| `log`, `lines`, `stamps` | results kept as they come, and what makes a kept one out of date |
| `sources`, `caches` | in a worker: what it read; what libraries keep for themselves |
| `storage` | files of this machine and of URLs |
| `summary`, `junit`, `live` | the result as text, JSON and JUnit XML; what is seen meanwhile |

The parent imports neither a framework nor NumPy nor a pair's file: whatever those do, they do to a
worker. Nothing is imported here.
"""
