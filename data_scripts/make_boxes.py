"""Write the boxes of Pascal VOC 2012 as a YOLO data set, for `kdlab yolo` and ultralytics.

    python data_scripts/get_segmentation.py voc              # to data/VOCdevkit, if it is not there yet
    python data_scripts/make_boxes.py data/voc-boxes         # 5,717 images in train, 5,823 in val, of 20 classes
    python data_scripts/make_boxes.py data/voc-boxes --check # are they still as they were written?
    kdlab yolo sparse-train voc --model yolov8n.yaml --out runs/sparse --lr 1e-3

Difficult objects are left out, as VOC's own measure does. The images are linked and not copied, where that is possible.
"""

from pathlib import Path

from kdlab.commands.data_scripts import add_folder, make, parser_of
from kdlab.data.voc_boxes import write_voc_boxes


def main() -> None:
    parser = parser_of(__doc__)
    add_folder(parser)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="FOLDER",
        help="where VOCdevkit/VOC2012 is (default: %(default)s)",
    )
    args = parser.parse_args()
    make("make_boxes", args, lambda: write_voc_boxes(args.folder, args.data))


if __name__ == "__main__":
    main()
