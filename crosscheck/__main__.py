"""``python -m crosscheck``: the command line."""

from crosscheck.cli import main

if __name__ == "__main__":
    main(prog_name="crosscheck")
