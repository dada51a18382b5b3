"""What only a notebook needs: setting up, figures, widgets, exercise checks."""

from kdlab.classroom.evidence import read_evidence
from kdlab.classroom.figures import MARKERS, PALETTE, figure, show, show_table
from kdlab.classroom.setup import Profile, start

__all__ = ["MARKERS", "PALETTE", "Profile", "figure", "read_evidence", "show", "show_table", "start"]
