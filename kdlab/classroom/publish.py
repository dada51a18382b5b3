"""What is left out of a notebook when it is executed for the repository or for the web."""

from nbconvert.preprocessors import Preprocessor
from nbformat import NotebookNode


class WithoutWidgetViews(Preprocessor):
    """Keep a widget's words and drop its view, which shows nothing but an error once its kernel is gone.

    For ``jupyter nbconvert --Exporter.preprocessors``.
    """

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        return cell, resources
