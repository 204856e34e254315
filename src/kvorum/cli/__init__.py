"""The `kvorum` command. Needs the extra `cli`."""

import sys


def main() -> None:
    """Run the command line; without the extra, say what to install."""
    try:
        # Here, not above: the message below must be able to appear.
        from kvorum.cli.app import app  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if exc.name not in {"cyclopts", "rich"}:
            raise
        sys.exit(f"the kvorum command needs {exc.name}: pip install 'kvorum[cli,embedded]'")
    app()
