"""`python -m persona.config`: prints the settings tables of `docs/operations.md`."""

import sys

from persona.config import settings_markdown

if __name__ == "__main__":
    sys.stdout.write(settings_markdown())
