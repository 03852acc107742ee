"""`python -m persona`."""

from persona.cli import main

if __name__ == "__main__":
    main(prog_name="persona")
