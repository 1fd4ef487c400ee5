"""`python -m reperfuse`."""

from reperfuse.cli import main

if __name__ == "__main__":
    main()
