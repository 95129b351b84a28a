"""The child process that fetches a model from the hub: `python -m app.models.hub_worker NAME`.

It alone may leave this computer, and only when a user asked for a model. It prints {"total"}, then {"folder"}; or
{"failed"}.
"""

import json
import sys


def main() -> None:
    from huggingface_hub import snapshot_download

    from app.models.files import first_line
    from app.models.folder import HUB_FILES

    output, sys.stdout = sys.stdout, sys.stderr  # the library prints how far it is

    def tell(**event: object) -> None:
        output.write(json.dumps(event) + "\n")
        output.flush()

    wanted = {"repo_id": sys.argv[1], "allow_patterns": HUB_FILES}
    try:
        tell(total=sum(file.file_size for file in snapshot_download(**wanted, dry_run=True)))
        tell(folder=snapshot_download(**wanted, max_workers=2))
    except Exception as error:  # whatever network and hub do
        tell(failed=first_line(error))


if __name__ == "__main__":
    main()
