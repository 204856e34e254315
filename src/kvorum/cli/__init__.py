"""The `kvorum` command. Needs the extra `cli`."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: the process's, or `arguments`.

    Raises:
        SystemExit: always. 0 on success; without the extra, a message that says what to install.
    """
    try:
        # Not at the top: without the extra, the message below must appear.
        from kvorum.cli.app import app  # noqa: PLC0415
    except ModuleNotFoundError as exc:
        if exc.name not in {"cyclopts", "rich"}:
            raise
        sys.exit(f"the kvorum command needs {exc.name}: pip install 'kvorum[cli,embedded]'")
    app(arguments)
