"""``python -m rlmon.cli``."""

from rlmon.cli import main

if __name__ == "__main__":
    main()
