"""`python -m kanabo` is the command `kanabo`."""

from cluster.commands.app import main

if __name__ == "__main__":
    main()
