"""Makes `import torchaudio` work beside a torch without CUDA. Set-up runs `python -m common.torchaudio_setup` once.

The Linux wheels of torchaudio 2.11 (x86-64 and arm64) link their compiled extension against CUDA's libraries, so beside
a CPU-only torch the import fails. Without the extension torchaudio works: what we use of it is
pure Python. Where the import succeeds (macOS, a torch with CUDA) nothing is touched.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def remove_unloadable_extension(
    directory: Path, *, torch_cuda: str | None, import_error: Callable[[], str | None]
) -> tuple[Path, ...]:
    """Delete the shared libraries in `directory` (`torchaudio/lib`) if they are why torchaudio cannot be imported.

    `torch_cuda` is `torch.version.cuda`; `import_error` tries the import in a fresh interpreter and returns None or
    what went wrong. Returns what was deleted, nothing when the import already works: a second call changes nothing.
    Raises RuntimeError where the import fails for another reason, or still fails afterwards.
    """
    error = import_error()
    if error is None:
        return ()
    libraries = tuple(sorted(directory.glob("*.so")))
    if torch_cuda is not None or not libraries:
        raise RuntimeError(f"torchaudio cannot be imported, and not for want of CUDA:\n{error}")
    for library in libraries:
        library.unlink()
    error = import_error()
    if error is not None:
        raise RuntimeError(f"torchaudio cannot be imported even without its compiled extension:\n{error}")
    return libraries


def _import_error() -> str | None:
    # A child process: an import that failed half-way leaves torch's operator registry changed in this one.
    child = subprocess.run([sys.executable, "-c", "import torchaudio"], capture_output=True, text=True, check=False)
    return None if child.returncode == 0 else child.stderr


def main() -> int:
    """Repair the torchaudio of the interpreter that runs this; the exit status is 0 when it can be imported."""
    import torch

    found = importlib.util.find_spec("torchaudio")
    if found is None or found.origin is None:
        print("torchaudio is not installed beside this Python", file=sys.stderr)
        return 1
    try:
        removed = remove_unloadable_extension(
            Path(found.origin).parent / "lib", torch_cuda=torch.version.cuda, import_error=_import_error
        )
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if removed:
        print(f"torch has no CUDA: removed torchaudio's compiled extension ({', '.join(p.name for p in removed)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
