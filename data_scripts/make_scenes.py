"""Write the built-in scenes to disk, for programs that read files.

    python data_scripts/make_scenes.py data/scenes                                # 2,000, 200 and 500 images of 64x64
    python data_scripts/make_scenes.py data/scenes160 --size 160 --train 500
    python data_scripts/make_scenes.py data/scenes --check                        # are they still as they were written?

The same numbers give the same files: images, YOLO labels and data.yaml, as `kdlab yolo` and ultralytics read them,
masks, as `kdlab teach data/scenes --task segmentation` reads them, and annotations in Pascal VOC's XML.
"""

from kdlab.commands.data_scripts import add_folder, make, parser_of
from kdlab.commands.options import whole
from kdlab.data.scenes import SAMPLES, SIZE
from kdlab.data.yolo_scenes import write_yolo_scenes


def main() -> None:
    parser = parser_of(__doc__)
    add_folder(parser)
    parser.add_argument("--size", type=whole(16), default=SIZE, help="pixels a side (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0), default=0, help="another one, other scenes (default: %(default)s)")
    for split, count in SAMPLES.items():
        parser.add_argument(f"--{split}", type=whole(1), default=count, help="images (default: %(default)s)")
    args = parser.parse_args()
    samples = {split: getattr(args, split) for split in SAMPLES}
    make("make_scenes", args, lambda: write_yolo_scenes(args.folder, samples, args.size, args.seed))


if __name__ == "__main__":
    main()
