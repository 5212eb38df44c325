"""The exit codes of every command of the project.

| code | constant    | meaning |
|------|-------------|---------|
| 0    | DONE        | the command did all that was asked |
| 1    | FAILED      | it started and could not finish; the message names what failed and the fix |
| 2    | REFUSED     | the command line or the configuration was refused; nothing was started |
| 75   | STOPPED     | it was told to stop and saved a checkpoint: start it again to go on |
| 130  | INTERRUPTED | Ctrl-C |

75 is EX_TEMPFAIL of sysexits.h, 130 is 128 + SIGINT as shells count. A training rank that another
signal ends gives 128 plus its number.
"""

DONE = 0
FAILED = 1
REFUSED = 2
STOPPED = 75
INTERRUPTED = 130

LINE = (
    "Exit codes: 0 done; 1 could not finish; 2 refused (command line or configuration); "
    "75 told to stop, checkpoint saved; 130 Ctrl-C."
)
"""The last line of every --help."""
