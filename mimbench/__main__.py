"""`python -m mimbench` is the `mimbench` command."""

from mimbench.jobs.cli.main import main

if __name__ == "__main__":
    main()
