"""The tab *Versions* in locust's web UI, and what it shows as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from flask import Response, jsonify, request
from locust.env import Environment

from loadtests.users.shares import COLUMNS, as_cells, as_tree

if TYPE_CHECKING:
    from loadtests.users.session import Session

TAB: Final = "sluice-versions"
JSON_PATH: Final = "/sluice/versions"
CSV_PATH: Final = "/sluice/versions/csv"


def extend(environment: Environment, session: Session) -> None:
    """Adds the tab and its routes, behind the login where there is one."""
    ui: Any = environment.web_ui
    options: Any = environment.parsed_options
    base = options.web_base_path or ""
    ui.template_args |= {
        "extended_tabs": [{"title": "Versions", "key": TAB}],
        "extended_tables": [
            {
                "key": TAB,
                "structure": [{"key": name, "title": title} for name, title in COLUMNS],
            }
        ],
        "extended_csv_files": [
            {"href": f".{CSV_PATH}", "title": "Download versions CSV"},
        ],
    }

    @ui.app.route(base + JSON_PATH)  # type: ignore[untyped-decorator]
    @ui.auth_required_if_enabled  # type: ignore[untyped-decorator]
    def versions() -> Response:
        return jsonify(tree_of(session))

    @ui.app.route(base + CSV_PATH)  # type: ignore[untyped-decorator]
    @ui.auth_required_if_enabled  # type: ignore[untyped-decorator]
    def versions_csv() -> Response:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow([title for _, title in COLUMNS])
        for row in session.rows():
            cells = as_cells(row)
            writer.writerow([cells[name] for name, _ in COLUMNS])
        answer = Response(text.getvalue(), mimetype="text/csv")
        answer.headers["Content-Disposition"] = "attachment; filename=versions.csv"
        return answer

    @ui.app.after_request  # type: ignore[untyped-decorator]
    def with_versions(answer: Response) -> Response:
        # Where locust's page looks for what its added tabs show.
        if request.path == f"{base}/stats/requests" and answer.status_code == 200:
            tree = json.loads(answer.get_data())
            rows = [as_cells(row) for row in session.rows()]
            tree["extended_stats"] = [{"key": TAB, "data": rows}]
            answer.set_data(json.dumps(tree))
        return answer


def tree_of(session: Session) -> dict[str, Any]:
    """Versions, notes and what a shape found."""
    saturation = getattr(session.environment.shape_class, "saturation", None)
    found: dict[str, Any] = {
        "versions": [as_tree(row) for row in session.rows()],
        "notes": [note for says in session.declared().values() for note in says.notes],
    }
    if saturation is not None:
        found["saturation"] = {
            "steps": [asdict(step) for step in saturation.steps],
            "knee": asdict(saturation.knee) if saturation.knee else None,
            "finished": saturation.finished,
        }
    return found
