"""`python -m cgfedrec`, and the command ``cgfedrec``."""

import sys


def main() -> int:
    """Run the command line. Its exit code is that of `cgfedrec.cli.main`, also for Ctrl-C while that is imported."""
    try:
        from cgfedrec.cli import main as command

        return command()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
