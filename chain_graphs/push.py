"""Push a dataset to the hub: `python -m graphmert.chain_graphs.push DIR NAME/OF_DATASET`.

The whole directory travels as it is (rows, tokenizer, manifest, card), so that `load_dataset` reads the repository and
`load_chain_graphs` a downloaded copy of it. (`load_chain_graphs(path)[0].push_to_hub(...)` of `datasets` itself works too,
but pushes the rows only.)
"""

import argparse
import sys
from pathlib import Path

from .manifest import read_manifest
from .sources import BuildError


def push_chain_graphs(path: str | Path, name: str, private: bool = False) -> str:
    """Push a dataset's directory.

    Args:
        path: a directory made by `python -m graphmert.chain_graphs.build`.
        name: repository on the hub, `USER/NAME`; made if it does not exist.
        private: of a repository made here.

    Returns:
        The address of the commit.

    Raises:
        BuildError: no such dataset, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    read_manifest(path)
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=str(path),
            repo_type="dataset",
            commit_message="Leafy chain graphs of source code",
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BuildError(f"push of {path} to {name} failed ({type(error).__name__}: {reason})") from error
    return str(commit.commit_url)


def main(argv: list[str] | None = None) -> int:
    """Run the command; a mistake of the user's is one line on standard error and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m graphmert.chain_graphs.push", description=__doc__.split("\n")[0])
    parser.add_argument("path", metavar="DIR", help="directory of a dataset")
    parser.add_argument("name", metavar="USER/NAME", help="dataset repository on the hub")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    arguments = parser.parse_args(argv)
    try:
        print(push_chain_graphs(arguments.path, arguments.name, arguments.private))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
