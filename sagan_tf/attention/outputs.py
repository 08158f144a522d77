"""What `sagan-attention` shows: a figure as in the paper, and a page to explore."""

import dataclasses
from collections.abc import Iterator

import tensorflow as tf

from sagan_tf import files, pixels
from sagan_tf.attention import explorer, maps
from sagan_tf.attention.figure import figure, parse_queries
from sagan_tf.errors import UserError
from sagan_tf.runs.run import Run
from sagan_tf.sampling import Choice

__all__ = ["FIGURE_SAMPLES", "PAGE_SAMPLES", "Request", "show"]

FIGURE_SAMPLES, PAGE_SAMPLES = 10, 36


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(Choice):
    """What to show of a run or of an export, checked when it is made.

    Attributes:
      output: FILE.png for a figure.
      html: FILE.html for a page to explore.
      queries: points of the figure in image pixels, "x,y;x,y"; empty: those with the most distinct maps.
      images: an image or a folder of images: show the discriminator's attention on these.
      saved_model: directory of a SavedModel of `sagan-export`, in place of a run.
      model_dir: directory of the run.

    Raises:
      UserError: if they do not agree with each other, or nothing is to be written.
    """

    output: str = ""
    html: str = ""
    queries: str = ""
    images: str = ""
    saved_model: str = ""
    model_dir: str = ""

    def __post_init__(self):
        for name in ("output", "html", "saved_model"):
            object.__setattr__(self, name, files.resolve(getattr(self, name), name))
        if not (self.output or self.html):
            raise UserError(
                "--output and --html are missing: name a .png file for a figure, or a .html file for a page to explore."
            )
        if self.output and not self.output.lower().endswith(".png"):
            raise UserError(f"--output={self.output} is not a .png file: name one (--html writes a page).")
        if self.queries and not self.output:
            raise UserError("--queries are points of the figure: add --output, or leave them out.")
        if self.saved_model and (self.model_dir or self.images):
            other = "--model_dir" if self.model_dir else "--images"
            raise UserError(f"--saved_model and {other} exclude each other (an export holds the generator alone): leave one out.")


def show(request: Request, run: Run | None) -> Iterator[str]:
    """Writes the figure and the page that are asked for; the figure of a run also goes to its TensorBoard.

    Args:
      request: what to show.
      run: that of `model_dir`; None with `saved_model`.

    Yields:
      A sentence for each, when it is written.

    Raises:
      UserError: if the run or the export cannot give it, or it cannot be written.
    """
    source = maps.run_source(run, request, request.images) if run else maps.export_source(request.saved_model, request)
    if request.output:
        network, gamma = next(iter(source.gammas.items()))
        heading = f"{source.title}: attention of the {network}, gamma {gamma:.3f}"
        queries = parse_queries(request.queries, source.image_size)
        sheet = figure(source.samples(FIGURE_SAMPLES), network, heading, queries)
        with files.writing("output", request.output):
            files.write(request.output, pixels.png(sheet))
        yield f"Figure in {request.output}"
        if run:  # It may be someone else's; the figure itself is written.
            with files.told(f"{run.directory} cannot be written: the figure is not in TensorBoard", tf.errors.OpError):
                writer = run.summary_writer()
                with writer.as_default(source.step):
                    tf.summary.image(f"attention/{network}", sheet[None])
                writer.close()
    if request.html:
        document = explorer.page(source.samples(PAGE_SAMPLES), source.gammas, source.title)
        with files.writing("html", request.html):
            files.write(request.html, document)
        yield f"Page in {request.html} ({len(document.encode()) / 1e6:.1f} MB): open it in any browser."
