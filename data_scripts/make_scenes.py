"""Write the built-in scenes to disk, for programs that read files.

    python data_scripts/make_scenes.py data/scenes                                # 2,000, 200 and 500 images of 64x64
    python data_scripts/make_scenes.py data/scenes160 --size 160 --train 500

The same numbers give the same files: images, labels and data.yaml, as `kdlab yolo` and ultralytics read them.
"""

import argparse
from pathlib import Path

from kdlab import InputError
from kdlab.commands.options import whole
from kdlab.data.scenes import SAMPLES, SIZE
from kdlab.data.yolo_scenes import write_yolo_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to make; it must not exist")
    parser.add_argument("--size", type=whole(16), default=SIZE, help="pixels a side (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="another one, other scenes (default: %(default)s)")
    for split, count in SAMPLES.items():
        parser.add_argument(f"--{split}", type=whole(1), default=count, help="images (default: %(default)s)")
    args = parser.parse_args()
    samples = {split: getattr(args, split) for split in SAMPLES}
    try:
        print(f"written: {write_yolo_scenes(args.folder, samples, args.size, args.seed)}")
    except InputError as error:
        raise SystemExit(f"make_scenes: {error}") from error


if __name__ == "__main__":
    main()
