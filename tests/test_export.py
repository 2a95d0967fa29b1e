"""Export: LaTeX takes every file, nothing depends on the day or the process, and what is missing is
said in a sentence.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import frames
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny

from lib import analysis, cells, files, paths
from lib.figures import export, paper, plots, select, style
from lib.runs.store import Store

mpl.use("Agg")

TESTS = Path(__file__).parent
NASTY = r"aa_b & 50% #1 ~^ {x} \ $2 σ é ≥"


@pytest.fixture(scope="module")
def study():
    return frames.study()


@pytest.fixture(scope="module")
def overleaf(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    archive, left_out = paper.overleaf(study, out)
    return archive, left_out, out / "overleaf"


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def a_figure(label="vanilla RNN"):
    with style.context("article", "column", 1.6):
        ax = plots.bars(frames.runs(["rnn", "stp"], ["8/4"]))
        ax.set_yticks(ax.get_yticks(), [label] * 2)
    return ax.figure


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- figures


@pytest.mark.parametrize("journal", [name for name in style.JOURNALS if name != "notebook"])
def test_a_figure_takes_width_font_and_size_of_the_document(tmp_path, journal):
    with mpl.rc_context({"font.size": 20, "font.family": "DejaVu Sans"}):  # drawn without the style
        fig, ax = plt.subplots(figsize=(9, 2))
        ax.plot([0, 1], label="x")
        ax.set_xlabel("Training (epochs)")
    (path,) = export.export_figure(
        fig, "a_name-1", "text", journal, folder=tmp_path, formats=["pdf"]
    )
    data = path.read_bytes()
    width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ", data)[1]) / 72
    assert width == pytest.approx(style.width_of(journal, "text"), abs=1e-3)
    assert b"/Type3" not in data and b"/FontFile2" in data and b"CreationDate" not in data
    assert (b"STIXGeneral" if journal in ("neurips", "icml") else b"Cmr10") in data
    assert ax.xaxis.label.get_fontsize() == 20 and ax.xaxis.label.get_fontfamily() == [
        "DejaVu Sans"
    ]  # the figure itself is as before


def test_only_heat_maps_are_rasterised(tmp_path):
    with style.context("report", "column"):
        heat, bars = (
            plots.heatmap(frames.runs(["cb", "gru"])).figure,
            plots.bars(frames.runs(["cb"], ["8/4"])).figure,
        )
    assert (
        b"/Subtype /Image"
        in export.export_figure(heat, "heat", folder=tmp_path, formats=["pdf"])[0].read_bytes()
    )
    assert (
        b"/Subtype /Image"
        not in export.export_figure(bars, "bars", folder=tmp_path, formats=["pdf"])[0].read_bytes()
    )


def test_export_twice_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        export.export_figure(a_figure(), "bars", folder=tmp_path / folder, formats=["pdf", "png"])
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_without_tex_everything_but_pgf_works_and_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "has_tex", lambda: False)
    written = export.export_figure(a_figure(), "bars", folder=tmp_path)
    assert [path.name for path in written] == ["bars.pdf"]
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and "PGF is left out" in said[0]
    left_out = paper.write(frames.few(["gru"]), tmp_path / "all", formats=("pdf", "pgf"))
    assert [line for line in left_out if "pdflatex is not installed" in line] and not list(
        tmp_path.rglob("*.pgf")
    )


draw = export.export_figure


@pytest.mark.parametrize("call, words", [
    (lambda fig, to: draw(fig, "a/b", folder=to), "no plain file name"),
    (lambda fig, to: draw(fig, "a.pdf", folder=to), "no plain file name"),
    (lambda fig, to: draw(fig, "", folder=to), "no plain file name"),
    (lambda fig, to: draw(fig, "a", "wide", folder=to), "width is 'wide'"),
    (lambda fig, to: draw(fig, "a", journal="nature", folder=to), "known are article, neurips"),
    (lambda fig, to: draw(fig, "a", folder=to, formats=["svg"]), "Unknown format 'svg'"),
])  # fmt: skip
def test_bad_requests_are_one_sentence(tmp_path, call, words):
    with pytest.raises(ValueError, match=words) as error:
        call(a_figure(), tmp_path)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


# ---- tables and numbers


def test_table_has_booktabs_intervals_bold_best_and_escaped_text(tmp_path):
    frame = pd.DataFrame(
        {
            "Cell": [NASTY, "CB"],
            "x": [41.26, 50.0],
            "x low": [40.0, np.nan],
            "x high": [42.5, np.nan],
            "n": [3, 1],
        }
    )
    frame["loss"] = [-1.25, 2.0]
    text = export.export_table(
        frame, "t", "50 % of $H$ & more", "tab:t", best=["x"], folder=tmp_path
    ).read_text()
    assert all(
        rule in text
        for rule in (
            r"\toprule",
            r"\midrule",
            r"\bottomrule",
            r"\label{tab:t}",
            r"50 \% of $H$ \& more",
        )
    )
    assert (
        r"aa\_b \& 50\% \#1 \textasciitilde{}\textasciicircum{} \{x\} \textbackslash{} "
        r"\textdollar{}2" in text
    )
    assert r"41.3 [40.0, 42.5]" in text and r"\textbf{50.0}" in text and r"$-$1.2 " in text
    assert r"\usepackage" not in text and "multirow" not in text


@pytest.mark.parametrize("change, words", [
    ({"frame": pd.DataFrame({"Cell": []})}, "no row"),
    ({"name": "a b"}, "no plain file name"),
    ({"label": "tab{x}"}, "label is"),
    ({"best": ["accuracy"]}, "Unknown column 'accuracy' in best"),
])  # fmt: skip
def test_bad_tables_are_one_sentence(tmp_path, change, words):
    values = {
        "frame": pd.DataFrame({"Cell": ["CB"]}),
        "name": "t",
        "caption": "c",
        "label": "tab:t",
    } | change
    with pytest.raises(ValueError, match=words):
        export.export_table(**values, folder=tmp_path)


def test_numbers_become_commands(tmp_path):
    text = export.export_numbers(
        {"GruAccuracy": "54.5", "Gain": "−1.2 %", "Runs": 27}, folder=tmp_path
    ).read_text()
    assert text.splitlines()[1:] == [
        r"\newcommand{\GruAccuracy}{54.5}",
        r"\newcommand{\Gain}{$-$1.2 \%}",
        r"\newcommand{\Runs}{27}",
    ]
    for name in ("gruAccuracy", "Gru1", "Gru_a", "", "Gru Accuracy", "Gr"):
        with pytest.raises(ValueError, match="must start with a capital"):
            export.export_numbers({name: 1}, folder=tmp_path)


def test_names_of_commands_are_letters():
    assert export.command_name("stp_dale 8/4") == "StpDaleEightFour"
    assert export.COMMAND.fullmatch(export.command_name("my cell 2, dt 0.3"))


# ---- which runs are shown


def test_missing_runs_and_an_empty_store_are_said(tmp_path):
    few = frames.runs(["gru"], ["8/4"], [0])
    left_out = paper.write(
        select.Frames(few, frames.curves(few), frames.history(few), {}), tmp_path
    )
    for name in ("paired_differences", "effects", "input_length", "learning_rate_scan"):
        assert len([line for line in left_out if line.startswith(name)]) == 1
    assert (tmp_path / "figures/accuracy_bars.pdf").exists() and "| full GRU |" in (
        tmp_path / "tables/summary.md"
    ).read_text()
    empty = few.iloc[:0]
    for call in (paper.write, paper.overleaf):
        with pytest.raises(ValueError, match="No finished run to export; train some first"):
            call(select.Frames(empty, empty, empty, {}), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()


def test_diverged_runs_are_said_and_enter_no_mean(study):
    lost = frames.runs(["cb"], ["8/4"], [3]).assign(state="DIVERGED", test_accuracy=np.nan)
    found = paper.numbers(study._replace(runs=pd.concat([study.runs, lost], ignore_index=True)))
    assert (found["Diverged"], found["DivergedRuns"]) == ("1 run", "CB, seed 3")
    assert found["CbAccuracy"] == paper.numbers(study)[
        "CbAccuracy"
    ] and "Diverged" not in paper.numbers(study)


def test_quoted_numbers_and_tables_are_those_of_the_statistics(study):
    found = paper.numbers(study)
    main = select.comparison(study.runs).query("window == '8/4'")
    table = analysis.summarise(main, "cell").set_index("cell")[["mean", "low", "high"]] * 100
    mean, low, high = table.loc["stp_dale_cb"]
    assert found["StpDaleCbAccuracy"] == f"{mean:.1f}"
    assert found["StpDaleCbAccuracyInterval"] == f"[{low:.1f}, {high:.1f}]"
    pairs = [(contrast.cell, contrast.reference) for contrast in analysis.PLANNED]
    family = analysis.comparisons(analysis.of_seeds(main), pairs).set_index(["group", "reference"])
    mean, low, high = family.loc[("cb", "rnn"), ["mean", "low", "high"]] * 100
    assert found["GateDifference"] == f"{mean:.1f}"
    assert found["GateDifferenceInterval"] == f"[{low:.1f}, {high:.1f}]"
    tables = {item.name: item for item in paper.tables(study)}
    rows = tables["contrasts"].quoted()
    assert rows["gate"]["Pair"].startswith("CB − ")
    summary = tables["summary"].frame.set_index("Cell")
    expected = 100 * main.query("cell == 'gru'")["test_accuracy"].mean()
    assert summary.at["full GRU", "Accuracy (%)"] == pytest.approx(expected)


def test_every_number_is_a_command_and_most_are_quoted(study):
    """A document quotes what it wants of cells, contrasts and effects; all else a text quotes."""
    found = paper.numbers(study)
    assert all(export.COMMAND.fullmatch(name) for name in found)
    texts = [*export.TEMPLATES.glob("*.j2"), paths.results_dir() / "cifar10/README.md.j2"]
    quoted = " ".join(path.read_text() for path in texts)
    stems = [
        export.command_name(name)
        for item in paper.tables(study)
        if item.name in paper.COMMANDS
        for name in item.names
    ]
    rest = [name for name in found if not any(name.startswith(stem) for stem in stems)]
    assert not [name for name in rest if not re.search(rf"\b{name}\b", quoted)]


def test_one_or_two_seeds_stand_in_no_table_of_inference(study):
    two = study.runs[study.runs["seed"] < 2]
    made = {item.name: item for item in paper.tables(study._replace(runs=two))}
    assert not {"contrasts", "effects"} & set(made)
    assert "Difference low" in made["steps"].frame
    assert made["steps"].frame["Difference low"].isna().all()
    assert "no 95 % interval" in made["steps"].lead
    few = study.runs.query("options == '{\"stp_dt\": 0.1}' and seed == 2 and cell == 'gru'").index
    mixed = study.runs.drop(few)
    names = {item.name: item for item in paper.tables(study._replace(runs=mixed))}["steps"].names
    assert names == ("STPDaleCB, stp dt 0.1",)


def test_findings_say_what_was_run_and_no_more(study):
    quoted = paper.numbers(study)
    text = paper.readme(study, figures_at="digits")
    best = f"full GRU has the highest mean at 8/4: {quoted['GruAccuracy']} %"
    assert f"**{best} {quoted['GruAccuracyInterval']}.**" in text and "{" not in text
    for item in paper.figures(study):
        assert f"](digits/figures/{item.name}.png)" in text and item.caption in text
    assert all(item.markdown.rstrip() in text for item in paper.tables(study))
    few = paper.readme(frames.few(["gru", "rnn"]))
    assert (
        "fewer than three seeds, no interval" in few
        and "DaleCB" not in few
        and "diverged" not in few.lower()
    )


def test_a_text_that_quotes_what_was_not_run_is_refused_in_one_sentence(study, tmp_path):
    own = tmp_path / "README.md.j2"
    own.write_text("{{ rows.contrasts.gate.Difference }} points")
    difference = paper.numbers(study)["GateDifference"]
    assert paper.readme(study, own) == f"{difference} points"
    with pytest.raises(ValueError, match=r"README.md.j2 cannot be filled in: .*contrasts.*\.$"):
        paper.readme(frames.few(["gru", "cb"]), own)


@pytest.mark.parametrize("reason", ["full", "read-only"])
def test_a_folder_that_takes_no_file_keeps_what_it_had(tmp_path, monkeypatch, reason):
    few = frames.few(["gru"])
    paper.write(few, tmp_path)
    before = digests(tmp_path)
    error = errno.ENOSPC if reason == "full" else errno.EROFS
    taken = []

    def refuse(path, *arguments):
        taken.append(path)
        if len(taken) > 3:
            raise OSError(error, os.strerror(error))
        return replace(path, *arguments)

    replace = files.system.replace
    monkeypatch.setattr(files.system, "replace", refuse)
    with pytest.raises(files.StoreError):
        paper.write(few, tmp_path)
    assert digests(tmp_path) == before


def test_delays_are_drawn_and_what_plasticity_changes_is_told():
    every = [frames.runs(shapes=["8/4"]), frames.delays()]
    study = frames.only(pd.concat(every, ignore_index=True))
    assert "delays" in {item.name for item in paper.figures(study)}
    rows = {item.name: item.quoted() for item in paper.tables(study)}
    assert rows["delays"]["CB"]["128"] == "40.1" and rows["delays"]["CB"]["8 rows, 512"] == "30.1"
    helps = rows["plasticity"]
    pairs = {"STP nonDale − CB", "STP nonDale, stp dt 0.1 − CB"}
    assert set(helps) == pairs | {"STP nonDale, repaired − CB, repaired"}
    assert {row[task] for row in helps.values() for task in ("0", "128", "512")} == {"2.0"}
    assert helps["STP nonDale − CB"]["512Interval"].startswith("[1.")


def test_lesions_are_told_where_networks_were_measured():
    runs = frames.delays()
    asked = runs[runs["cell"].isin(["cb", "stp"]) & (runs["delay"] == 512)]
    measured = [
        {"key": run.key, "lesion": what, "intact": 0.4, "drop": drop + 0.001 * run.seed}
        for run in asked.itertuples()
        for what, drop in (("W", 0.1), ("z", 0.02), ("UX", 0.03))
        if what != "UX" or run.cell == "stp"
    ]
    every = pd.concat([frames.runs(shapes=["8/4"]), runs], ignore_index=True)
    study = frames.only(every)._replace(lesions=pd.DataFrame(measured))
    made = {item.name: item for item in paper.tables(study)}["delay_lesions"]
    row = made.quoted()["STP nonDale, repaired, 512"]
    assert (row["Intact"], row["W"], row["z"], row["UX"]) == ("40.0", "10.1", "2.1", "3.1")
    assert row["WInterval"] == "[9.9, 10.3]"
    assert made.quoted()["CB, 512"]["UX"] == "–" and "DaleCB, 512" not in made.quoted()


def test_ladders_are_drawn_and_told_where_their_rungs_ran():
    study = frames.only(frames.ladders())
    drawn = {item.name: item for item in paper.figures(study)}
    assert set(select.LADDERS) <= set(drawn)
    assert "P_z free: input weights of the gate of any sign" in drawn["repairs"].lead
    assert "sigmoid" in drawn["ladder"].lead and "sigmoid" not in drawn["repairs"].lead
    rows = {item.name: item.quoted() for item in paper.tables(study)}
    row = rows["repairs"]["added: K gain 12"]
    runs = study.runs.query("cell == 'dale_cb' and initialisation == 'balanced'")
    means = 100 * runs.groupby("options")["test_accuracy"].mean()
    repaired = next(text for text in means.index if text.count(":") == 5)
    assert row["Difference"] == f"{means[repaired] - means['{}']:.1f}" and row["From"] == "DaleCB"
    assert row["DifferenceInterval"].startswith("[")
    plain = frames.only(frames.runs(frames.TEN, ["8/4"]))
    assert not set(select.LADDERS) & {item.name for item in paper.figures(plain)}


# ---- committed results


def rebuilt(folder, seed="0"):
    """Every file that `compare --from` writes, from the bundles of a folder alone, in another
    process.
    """
    environment = {**os.environ, "PYTHONHASHSEED": seed, "WORKBOOK_RESULTS": str(folder.parent)}
    command = [sys.executable, "-m", "lib", "compare", "--from", str(folder)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    names = ("figures", "tables", "numbers.tex", "MANIFEST.json", "README.md", "../README.md")
    tops = [folder / name for name in names]
    written = [path for top in tops for path in (top, *top.rglob("*")) if path.is_file()]
    return {os.path.relpath(path, folder): path.read_bytes() for path in written}


def test_a_bundle_rebuilds_every_byte_without_training(tmp_path):
    configs = [tiny.config(cell, seed) for cell in ("gru", "cb") for seed in (0, 1)]
    for config in configs:
        tiny.execute([config], tmp_path / "live")
    live, keys = Store(tmp_path / "live"), [config.key() for config in configs]
    bundle = shutil.copytree(live.pack(keys, "digits"), tmp_path / "results" / "digits")
    first = rebuilt(bundle)
    expected = {"figures/accuracy_bars.png", "tables/summary.tex", "numbers.tex", "README.md"}
    assert expected <= set(first) and "../README.md" not in first
    for name in first:
        (bundle / name).unlink()
    assert rebuilt(bundle, "7") == first and not (bundle / "runs").exists()
    paper.write(select.collect(live, key=keys), tmp_path / "again")
    again = {name: (tmp_path / "again" / name).read_bytes() for name in digests(tmp_path / "again")}
    assert again == {name: data for name, data in first.items() if name != "README.md"}
    values = [live.status(config.key())["test_accuracy"] * 100 for config in configs[:2]]
    row = f"| full GRU | {np.mean(values):.1f} | "  # two seeds, no interval
    assert row in first["README.md"].decode().replace("**", "")


# The folders that hold figures and the bundles they were made from.
COMMITTED = sorted(path.parent for path in paths.results_dir().glob("*/MANIFEST.json"))


@pytest.mark.parametrize("folder", COMMITTED, ids=[folder.name for folder in COMMITTED])
def test_committed_figures_and_tables_are_those_of_the_committed_runs(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "results" / folder.name)
    again = rebuilt(copy)
    assert again == {name: (folder / name).read_bytes() for name in again}


# ---- the folder and the zip


def test_overleaf_folder_is_complete_and_its_manifest_true(overleaf, study):
    archive, left_out, folder = overleaf
    assert not [line for line in left_out if "PGF" not in line]
    manifest = json.loads((folder / "MANIFEST.json").read_text())["files"]
    files = digests(folder)
    assert set(manifest) == set(files) - {"MANIFEST.json", "main.tex", "README.md"}
    for name, entry in manifest.items():
        assert entry["sha256"] == files[name]
        assert (
            entry["commit"] == [frames.COMMIT]
            and entry["torch"] == ["2.13.0"]
            and set(entry["runs"]) <= set(study.runs["key"])
        )
        assert (
            entry["configuration"]["dataset"] == ["cifar10"]
            and 48 in entry["configuration"]["hidden_size"]
        )
    assert manifest["figures/accuracy_bars.pdf"]["configuration"]["window"] == ["8/4"]
    assert len(manifest["figures/accuracy_bars.pdf"]["runs"]) == 30
    text = (folder / "main.tex").read_text()
    for name in manifest:
        if name.endswith(".pdf"):
            assert f"\\figurefile{{{Path(name).stem}}}" in text
        if name.startswith("tables/") and name.endswith(".tex"):
            assert f"\\input{{{name[:-4]}}}" in text
    captions = re.findall(r"\\caption\{(.*)\}", text) + [
        re.search(r"\\caption\{(.*)\}", p.read_text())[1] for p in folder.glob("tables/*.tex")
    ]
    for caption in captions:
        assert all(
            words in caption for words in ("CIFAR-10", "window", "H = 48", "n = ", "interval")
        )
        assert re.search("; 10 (to 20 )?epochs;", caption)
    with zipfile.ZipFile(archive) as packed:
        assert {name: sha256(packed.read(name)).hexdigest() for name in packed.namelist()} == files


def test_another_process_rebuilds_every_byte(overleaf, tmp_path):
    code = (
        "import sys, frames; from lib.figures import paper; "
        "paper.overleaf(frames.study(), sys.argv[1])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "MPLBACKEND": "agg"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=TESTS)
    assert digests(tmp_path / "overleaf") == digests(overleaf[2])
    assert (tmp_path / "overleaf.zip").read_bytes() == overleaf[0].read_bytes()


def test_what_is_no_longer_exported_is_removed(tmp_path):
    paper.write(frames.few(), tmp_path)
    (tmp_path / "figures/mine.pdf").write_bytes(b"a person's own file stays")
    assert (tmp_path / "figures/effects.pdf").exists()
    paper.write(frames.few(["gru"]), tmp_path)
    assert (
        not (tmp_path / "figures/effects.pdf").exists() and (tmp_path / "figures/mine.pdf").exists()
    )


def compiled(archive, folder, pgf):
    """Unpack and compile twice; the log of the second run."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    main = folder / "main.tex"
    if pgf:
        main.write_text(main.read_text().replace("\n\\figurespgffalse", "\n\\figurespgftrue"))
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
            cwd=folder,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    return (folder / "main.log").read_text(errors="replace")


def check_document(folder, log, pages):
    assert not re.search(r"^!|undefined|multiply defined", log, re.MULTILINE)
    assert all(float(wide) <= 5 for wide in re.findall(r"Overfull \\[hv]box \(([\d.]+)pt", log))
    fonts = subprocess.run(
        ["pdffonts", "main.pdf"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.splitlines()[2:]
    assert fonts and not any("Type 3" in line for line in fonts)
    assert all(line.split()[-5] == "yes" for line in fonts)  # emb, sub, uni, object, generation
    info = subprocess.run(
        ["pdfinfo", "main.pdf"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert re.search(rf"Pages: +{pages}\n", info)


@pytest.mark.tex
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
@pytest.mark.parametrize("pgf", [False, True])
def test_zip_compiles_to_four_pages(overleaf, tmp_path, pgf):
    assert len(list(overleaf[2].glob("figures/*.pgf"))) == 15
    check_document(tmp_path, compiled(overleaf[0], tmp_path, pgf), pages=4)


@pytest.mark.tex
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_without_variants_three_pages_hold_everything(study, tmp_path):
    runs = study.runs[
        study.runs["key"].isin(
            [*select.comparison(study.runs)["key"], *select.scan(study.runs)["key"]]
        )
    ]
    archive, _ = paper.overleaf(study._replace(runs=runs), tmp_path)
    check_document(tmp_path / "unpacked", compiled(archive, tmp_path / "unpacked", False), pages=3)


@pytest.mark.tex
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
@pytest.mark.parametrize("journal, pgf", [("neurips", False), ("icml", True), ("article", False)])
def test_other_pages_and_names_with_specials_compile(tmp_path, monkeypatch, journal, pgf):
    class Mine(cells.get("dale_cb")):
        name, label = "mine_2", NASTY

    monkeypatch.setitem(cells.CELLS, Mine.name, Mine)
    runs = pd.concat(
        [
            frames.runs([*frames.NINE, "mine_2"], ["8/4", "4/4", "16/8", "4/2", "16/4"]),
            frames.runs(["mine_2"], ["8/4"], initialisation="notes"),
        ]
    )
    main = select.comparison(runs).query("window == '8/4'")
    archive, _ = paper.overleaf(
        select.Frames(runs, frames.curves(main), frames.history(main), {}),
        tmp_path,
        journal=journal,
    )
    folder = tmp_path / "unpacked"
    check_document(folder, compiled(archive, folder, pgf), pages=r"\d")


def test_effects_of_the_design_are_told_of_plain_and_of_repaired_cells():
    runs = frames.repaired_design()
    tables = {table.name: table for table in paper.tables(frames.only(runs))}
    means = 100 * runs.groupby([runs["options"] == "{}", "cell"])["test_accuracy"].mean()
    for name, own in (("effects", means[True]), ("repaired_effects", means[False])):
        found = tables[name].quoted()
        signs = (own["dale"] - own["cb"], own["stp_dale"] - own["stp"])
        assert found["W: sign - free"]["Difference"].replace("−", "-") == f"{sum(signs) / 2:.1f}"
        change = f"{signs[1] - signs[0]:.1f}"
        assert found["(sign - free) x STP"]["Difference"].replace("−", "-") == change
    assert "of repaired cells" in tables["repaired_effects"].caption
    lacking = (runs["options"] != "{}") & (runs["cell"] == "dale")
    few = frames.only(runs[~lacking])
    assert "repaired_effects" not in {table.name for table in paper.tables(few)}


def test_tables_of_repaired_cells_say_what_they_gain_and_what_a_constraint_costs():
    made = frames.only(frames.ladders())
    tables = {table.name: table for table in paper.tables(made)}
    means = 100 * select.headline(made.runs).groupby("group")["test_accuracy"].mean()
    repaired, constraints = tables["repaired"], tables["constraints"]
    assert repaired.names == ("DaleCB, repaired", "STPDaleCB, repaired")
    gain = means["DaleCB, repaired"] - means["DaleCB"]
    assert repaired.frame["Difference"].iat[0] == pytest.approx(gain)
    assert constraints.names == ("plasticity_dale",)  # no repaired cell without Dale's law here
    (row,) = constraints.frame.itertuples(index=False)
    assert row.Pair == "STPDaleCB, repaired − DaleCB, repaired"
    cost = means["STPDaleCB, repaired"] - means["DaleCB, repaired"]
    assert row.Difference == pytest.approx(cost)
    without = made.runs[made.runs["cell"] != "stp_dale_cb"]
    assert "constraints" not in {table.name for table in paper.tables(frames.only(without))}


@pytest.mark.parametrize(
    "runs",
    [
        frames.delays(seeds=[0]),
        frames.delays().query("first_rows == 8"),
        frames.runs(["gru"], ["4/4", "16/8"]),
        frames.runs(["cb", "gru"], ["8/4"], permuted=True),
    ],
    ids=["one seed a delay", "rows alone", "windows without the main one", "permuted alone"],
)
def test_part_of_a_study_gives_what_it_can(runs):
    study = frames.only(runs.reset_index(drop=True))
    for figure in paper.figures(study):
        with style.context():
            plt.close(getattr(figure.draw(), "figure", None) or plt.gcf())
    assert {table.name for table in paper.tables(study)} >= {"summary"}
    assert paper.numbers(study)


def test_cells_that_no_benchmark_timed_have_no_core_seconds(monkeypatch):
    monkeypatch.setattr(paper, "_milliseconds", lambda runs: ({"gru": 10.0}, 12))
    drawn = [
        {figure.name for figure in paper.figures(frames.few([name]))} for name in ("cb", "gru")
    ]
    assert ["core_seconds" in names for names in drawn] == [False, True]


def test_a_caption_counts_the_runs_that_its_table_shows():
    few = frames.runs(["cb"], ["8/4"], [0], options='{"dt": 1.0}')
    made = {table.name: table for table in paper.tables(frames.study(extra=[few]))}
    assert "n = 3 seeds" in made["steps"].caption and "CB, dt 1.0" not in made["steps"].names


def test_growth_is_told_at_every_length_beside_the_length_before():
    few = frames.runs(["simple_gru"], ["8/4"], [0], epochs=20)
    (table,) = (t for t in paper.tables(frames.study(extra=[few])) if t.name == "epochs")
    rows = table.quoted()
    assert set(rows) == {"vanilla RNN", "simple GRU", "full GRU", "CB", "DaleCB"}
    runs = frames.study().runs.query("cell == 'cb' and window == '8/4' and options == '{}'")
    means = 100 * runs.groupby("epochs")["test_accuracy"].mean()
    assert rows["CB"]["20"] == f"{means[20]:.1f}" and rows["CB"]["20Interval"].startswith("[")
    assert rows["simple GRU"]["DifferenceInterval"].startswith("(fewer than three")
    assert "after 10, 20 epochs" in table.caption and "n = 1 to 3 seeds" in table.caption
