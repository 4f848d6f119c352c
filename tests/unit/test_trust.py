"""Whose code may run."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError, ModelLoadError
from gateway.trust import Trust


def version(root: Path, name: str = "m") -> Path:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("x = 1")
    return folder


def test_covers_what_is_below_and_nothing_beside(tmp_path: Path) -> None:
    folder = version(tmp_path / "models")
    for trusted in (tmp_path, tmp_path / "models", tmp_path / "models" / "m", folder):
        Trust([str(trusted)]).check("model.py", folder)
        Trust([f"file://{trusted}"]).check("model.py", folder)
    for other in (tmp_path / "mod", tmp_path / "models2", tmp_path / "models" / "m" / "1" / "x"):
        with pytest.raises(ModelLoadError, match="not trusted"):
            Trust([str(other)]).check("model.py", folder)
    with pytest.raises(ModelLoadError, match="not trusted"):
        Trust([]).check("model.py", folder)


def test_a_relative_directory_is_what_it_was_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = version(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    trust = Trust(["models"])
    monkeypatch.chdir("/")
    trust.check("model.py", folder)


def test_what_it_says_to_type_is_enough(tmp_path: Path) -> None:
    folder = version(tmp_path / "models")
    other = version(tmp_path / "others")
    trust = Trust([str(tmp_path / "others")])
    trust.check("model.py", other)
    with pytest.raises(ModelLoadError) as caught:
        trust.check("model.py", folder)
    text = str(caught.value)
    assert "model.py executes code" in text
    assert f"trust.code: ['{tmp_path}/others', '{tmp_path}/models']" in text
    assert f"SLUICE_TRUST__CODE='{tmp_path}/others,{tmp_path}/models'" in text
    assert "\n" not in text
    both = text.partition("SLUICE_TRUST__CODE='")[2].partition("'")[0].split(",")
    mended = Trust(both)
    mended.check("model.py", folder)
    mended.check("model.py", other)


def test_links_out_of_a_trusted_directory_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "evil.py").write_text("x = 2")
    trust = Trust([str(tmp_path / "models")])
    folder = version(tmp_path / "models")
    (folder / "helper.py").symlink_to(folder / "model.py")
    trust.check("model.py", folder)  # a link within it
    (folder / "package").mkdir()
    link = folder / "package" / "evil.py"
    link.symlink_to(outside / "evil.py")
    with pytest.raises(ModelLoadError, match=r"'package/evil.py' is a link out of"):
        trust.check("model.py", folder)
    link.unlink()
    (folder / "more").symlink_to(outside)
    with pytest.raises(ModelLoadError, match="'more' is a link out of"):
        trust.check("model.py", folder)
    with pytest.raises(ModelLoadError) as caught:
        trust.check("model.py", folder)
    sources = str(caught.value).partition("SLUICE_TRUST__CODE='")[2].partition("'")[0]
    Trust([*sources.split(","), str(outside)]).check("model.py", folder)


def test_a_linked_version_or_model_counts_as_where_it_leads(tmp_path: Path) -> None:
    real = version(tmp_path / "elsewhere")
    models = tmp_path / "models"
    (models / "m").mkdir(parents=True)
    (models / "m" / "1").symlink_to(real)
    trust = Trust([str(models)])
    with pytest.raises(ModelLoadError, match="not trusted"):
        trust.check("model.py", models / "m" / "1")
    Trust([str(models), str(tmp_path / "elsewhere")]).check("model.py", models / "m" / "1")


def test_a_single_file_that_was_named_is_trusted_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    (tmp_path / "other.py").write_text("x = 1")
    trust = Trust([str(tmp_path / "mine.py")])
    assert trust.check("mine.py", tmp_path, file=tmp_path / "mine.py")
    for what, file in (("other.py", tmp_path / "other.py"), ("mine.py", None)):
        with pytest.raises(ModelLoadError):
            trust.check(what, tmp_path, file=file)
    # Neither its name nor words that look like it are the file.
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text("x = 1")
    with pytest.raises(ModelLoadError):
        trust.check("mine.py", tmp_path, file=tmp_path / "sub" / "mine.py")
    # Where the folder is trusted, too, the file is not alone.
    both = Trust([str(tmp_path), str(tmp_path / "mine.py")])
    assert not both.check("mine.py", tmp_path, file=tmp_path / "mine.py")


def test_folders_beside_are_trusted_as_far_as_modules_in_them_go(tmp_path: Path) -> None:
    outside = version(tmp_path / "outside")
    folder = version(tmp_path / "models")
    model = folder.parent
    trust = Trust([str(tmp_path / "models")])
    (model / "2").symlink_to(outside)  # another version
    (model / "config.pbtxt").symlink_to(outside / "model.py")
    trust.check("model.py", folder, beside=[model])
    (model / "helper.py").symlink_to(outside / "model.py")
    with pytest.raises(ModelLoadError, match=r"'helper\.py' is a link out of"):
        trust.check("model.py", folder, beside=[model])
    (model / "helper.py").unlink()
    (model / "package").symlink_to(outside)
    with pytest.raises(ModelLoadError, match="'package' is a link out of"):
        trust.check("model.py", folder, beside=[model])
    alone = Trust([str(folder)])
    alone.check("model.py", folder)
    with pytest.raises(ModelLoadError, match=rf"trust\.code: \['{folder}', '{model}'\]"):
        alone.check("model.py", folder, beside=[model])


def test_fetched_artifacts_go_by_where_they_came_from(tmp_path: Path) -> None:
    folder = version(tmp_path / "cache")
    trust = Trust(["s3://bucket/models", str(tmp_path)])
    trust.check("model.py", folder, "s3://bucket/models/m/1")
    trust.check("model.py", folder, "s3://bucket/models")
    for source in ("s3://bucket/models2/m/1", "s3://bucket", "https://bucket/models/m"):
        with pytest.raises(ModelLoadError) as caught:
            # The cache is below a trusted directory, but that is not where the files are from.
            trust.check("model.py", folder, source)
        assert f"'{source}'" in str(caught.value)
    (tmp_path / "secret.py").write_text("x = 1")
    (folder / "helper.py").symlink_to(tmp_path / "secret.py")
    with pytest.raises(ModelLoadError, match=r"'helper\.py' beside it is a link out"):
        trust.check("model.py", folder, "s3://bucket/models/m/1")


@pytest.mark.parametrize(
    "path",
    [
        "trusted/../files/model.py", "trusted/%2e%2E/files", "trusted/..%2ffiles", "trusted/./m",
        "trusted/%252e%252e/files", "trusted\\..\\files", "trusted/..", "trusted/m/..?x=1",
    ],
)  # fmt: skip
def test_uris_with_dots_lead_out_of_what_is_trusted(path: str) -> None:
    for place in ("http://h", "s3://b", "mlflow+http://h/models:"):
        trust = Trust([f"{place}/trusted"])
        assert trust.covers(Path("/x"), f"{place}/trusted/..m/a.b/model.py")
        assert not trust.covers(Path("/x"), f"{place}/{path}")
        with pytest.raises(ConfigError, match=r"holds '\.' or '\.\.'"):
            Trust([f"{place}/{path}"])


def test_a_file_uri_is_trusted_as_its_path_is(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    file = tmp_path / "mine.py"
    alone = Trust([str(file)])
    assert alone.check("mine.py", tmp_path, f"file://{file}", file=file)
    with pytest.raises(ModelLoadError):
        alone.check("other.py", tmp_path, f"file://{file}", file=tmp_path / "other.py")
    # A trusted version does not make the folder beside it trusted.
    folder = version(tmp_path / "models")
    trust = Trust([str(folder)])
    trust.check("model.py", folder, f"file://{folder}")
    with pytest.raises(ModelLoadError, match=rf"'{folder.parent}'\]"):
        trust.check("model.py", folder, f"file://{folder}", beside=[folder.parent])
    # And its links may lead to where code is trusted, as with a path.
    other = version(tmp_path / "others")
    (folder / "helper.py").symlink_to(other / "model.py")
    with pytest.raises(ModelLoadError, match="is a link out of the trusted directory"):
        trust.check("model.py", folder, f"file://{folder}")
    Trust([str(folder), str(other)]).check("model.py", folder, f"file://{folder}")
