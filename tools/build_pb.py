"""Compile ``proto/`` into what ``kvorum.pb`` loads: one descriptor set, and type stubs.

Run ``make pb`` after a change to a .proto file; the results are committed, so that neither users
nor the tests need protoc.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PB = ROOT / "src" / "kvorum" / "pb"
IMPORT = re.compile(r"^import (\w+)_pb2 as", re.MULTILINE)
FROM_IMPORT = re.compile(r"^from (\w+)_pb2 import", re.MULTILINE)


def main() -> int:
    sources = sorted(p.name for p in PROTO.glob("*.proto"))
    with tempfile.TemporaryDirectory() as tmp:
        status = protoc.main(
            [
                "protoc",
                f"-I{PROTO}",
                f"--descriptor_set_out={PB / 'descriptors.binpb'}",
                f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
                f"--mypy_out=quiet:{tmp}",
                *sources,
            ]
        )
        if status:
            return int(status)
        for stub in sorted(Path(tmp).glob("*_pb2.pyi")):
            name = stub.name.removesuffix("_pb2.pyi")
            text = IMPORT.sub(r"import kvorum.pb.\1 as", stub.read_text())
            (PB / f"{name}.pyi").write_text(FROM_IMPORT.sub(r"from kvorum.pb.\1 import", text))
            module = PB / f"{name}.py"
            if not module.exists():
                print(f"{module} is missing: add it by the pattern of its neighbours")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
