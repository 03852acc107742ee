"""`python -m loadgen`: the same as the command `loadgen`."""

from loadgen.cli import main

if __name__ == "__main__":
    main(prog_name="loadgen")
