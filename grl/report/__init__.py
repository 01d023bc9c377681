"""The pictures: report.png of a run, demo.png of the demo."""

from grl.report.comparison import draw_demo
from grl.report.run import draw_report

__all__ = ["draw_demo", "draw_report"]
