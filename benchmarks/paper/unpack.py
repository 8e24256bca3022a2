"""Writes a GGUF file's Q5_0 weights as Q8_0: the same numbers, which are computed with faster.

    python -m venv DIR && DIR/bin/pip install gguf
    DIR/bin/python -m benchmarks.paper.unpack MODEL.gguf UNPACKED.gguf

A block of either is 32 whole numbers and a scale for all of them. Q5_0 keeps of each number, plus
16, the lower four bits in one place and the fifth in another.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 32
FIVE_BITS, EIGHT_BITS = 2 + 4 + BLOCK // 2, 2 + BLOCK  # bytes of a block, with its scale


def unpacked(blocks: np.ndarray) -> np.ndarray:
    """Rows of FIVE_BITS bytes as rows of EIGHT_BITS."""
    scale, fifth, lower = np.split(blocks, [2, 6], axis=1)
    high = np.unpackbits(fifth, axis=1, bitorder="little") << 4
    numbers = np.concatenate([lower & 15, lower >> 4], axis=1) | high
    return np.concatenate([scale, (numbers.astype(np.int8) - 16).view(np.uint8)], axis=1)


def main() -> None:
    """The command."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("unpacked", type=Path)
    arguments = parser.parse_args()
    read = GGUFReader(arguments.model)
    write = GGUFWriter(arguments.unpacked, arch=read.fields["general.architecture"].contents())
    for field in read.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer's own
        kind = field.types[0]
        inner: Any = field.types[-1] if kind == GGUFValueType.ARRAY else None
        write.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in read.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if kind == GGMLQuantizationType.Q5_0:
            rows = int(tensor.shape[1])
            data = unpacked(np.asarray(data).reshape(-1, FIVE_BITS)).reshape(rows, -1)
            kind = GGMLQuantizationType.Q8_0
        write.add_tensor(tensor.name, data, raw_dtype=kind)
    write.write_header_to_file()
    write.write_kv_data_to_file()
    write.write_tensors_to_file()
    write.close()


if __name__ == "__main__":
    main()
