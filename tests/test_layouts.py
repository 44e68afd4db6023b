"""Every shipped archive dataset, from a small archive in its real layout, unpacked and as a stream."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest

from harness.data.datasets import open_spec
from harness.data.loading import decoded
from harness.data.specs import LabelFile, shipped_specs
from qualiclip_plugin.errors import DatasetError
from tests.harness_data import png, tgz, zipped
from tests.local_server import LocalServer, remote

CLIVE_ROWS = ["t1.bmp,60.5,18", *(f"{i}.bmp,{20 * i},15.5" for i in range(1, 5))]
CSIQ_ROWS = [f"1600.png,1600.{kind}.{level}.png,0.{level}" for kind in ("AWGN", "jpeg2000") for level in (1, 2, 3)]
KADID_ROWS = [f"I01.png,I01_{kind}_0{level}.png,{level}.5,0.7" for kind in ("01", "25") for level in (1, 2, 3)]
KADIS_ROWS = [f"{name}.png,7,9,3" for name in ("abbey", "abend", "acorn")]
KONIQ_ROWS = [f"{i}.jpg,{i}0.5,0.6,{split},0,0,1,0,0,100" for i, split in enumerate(("training", "test", "test"), 1)]
LIVE_ROWS = [f"refimgs/bikes.bmp,{kind}/img{i}.bmp,{i}0.5" for kind in ("jp2k", "wn") for i in (1, 2, 3)]
PIPAL_ROWS = [f"A0001.bmp,A0001_0{kind}_0{i}.bmp,1{i}00.25" for kind in (0, 6) for i in (1, 2)]
SPAQ_ROWS = [f"0000{i}.jpg,{i}0.0,50,50,50,50,50" for i in (1, 2, 3)]
TID_ROWS = [f"I01.BMP,{i}01_{kind}_{level}.bmp,4.{level},0.15" for i, kind in ("I1", "i2") for level in (1, 2, 3)]

LAYOUTS = {
    "agiqa3k": (
        "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align",
        [f"sd1.5_normal_{i}.jpg,a cat,,,,{i}.5,0.5,1,0.5" for i in range(3)],
        lambda row: f"AGIQA-3K/{row[0]}",
        "data.csv",
    ),
    "bid": (
        "",
        [f"ImageDatabase/DatabaseImage000{i}.JPG\t{i}.5\t0.8" for i in range(1, 4)],
        lambda row: f"BID/{row[0].split(chr(9))[0]}",
        "",
    ),
    "clive": (
        "img_name,mos,std",
        CLIVE_ROWS,
        lambda row: f"LIVEC/Images/{'trainingImages/' if row[0][0] == 't' else ''}{row[0]}",
        "",
    ),
    "csiq": ("ref_name,dist_name,dmos", CSIQ_ROWS, lambda row: f"CSIQ/dst_imgs/{row[1]}", ""),
    "flive": (
        "name,mos,is_valid",
        [f"voc_emotic_ava/JPEGImages__{i}.jpg,{i}0.5,False" for i in range(1, 4)],
        lambda row: f"FLIVE_Database/database/{row[0]}",
        "FLIVE_Database/database/labels_image.csv",
    ),
    "kadid10k": ("ref_name,dist_name,dmos,std", KADID_ROWS, lambda row: f"kadid10k/images/{row[1]}", ""),
    "kadis700k": (
        "ref_im,dist_type_1,dist_type_2,dist_type_3",
        KADIS_ROWS,
        lambda row: f"kadis700k/ref_imgs/{row[0]}",
        "kadis700k/kadis700k_ref_imgs.csv",
    ),
    "koniq10k": (
        "img_name,mos,std,split,c1,c2,c3,c4,c5,c_total",
        KONIQ_ROWS,
        lambda row: f"koniq10k/512x384/{row[0]}",
        "",
    ),
    "koniq10k-1024": (
        "img_name,mos,std,split,c1,c2,c3,c4,c5,c_total",
        KONIQ_ROWS,
        lambda row: f"koniq10k/1024x768/{row[0]}",
        "",
    ),
    "live": ("ref_name,dist_name,mos", LIVE_ROWS, lambda row: f"LIVEIQA_release2/{row[1]}", ""),
    "pipal": ("hq_name,dist_name,elo_score", PIPAL_ROWS, lambda row: f"PIPAL/Dist_Imgs/{row[1]}", ""),
    "spaq": (
        "Image name,MOS,Brightness,Colorfulness,Contrast,Noisiness,Sharpness",
        SPAQ_ROWS,
        lambda row: f"SPAQ/TestImage/{row[0]}",
        "",
    ),
    "tid2008": ("ref_name,dist_name,mos,std", TID_ROWS, lambda row: f"tid2008/distorted_images/{row[1]}", ""),
    "tid2013": ("ref_name,dist_name,mos,std", TID_ROWS, lambda row: f"tid2013/distorted_images/{row[1]}", ""),
}
"""Of each: first line and rows of its label table, where an image lies, and where the table lies inside."""


def test_every_shipped_archive_has_a_layout_here() -> None:
    assert set(LAYOUTS) == {name for name, spec in shipped_specs().items() if spec.archive}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_small_archive_in_the_real_layout_is_read(server: LocalServer, name: str, streamed: bool) -> None:
    header, lines, place, inside = LAYOUTS[name]
    table = "\n".join([header, *lines] if header else lines).encode()
    files = {place(line.split(",")): png(i) for i, line in enumerate(lines)}
    spec = shipped_specs()[name]
    assert spec.archive is not None
    packed, labels = spec.archive.images.file, spec.archive.labels
    content = {**files, **({inside: table} if inside else {}), "Readme.txt": b"hello"}
    server.files = {packed: zipped(content) if packed.endswith("zip") else tgz(content)}
    if not inside:
        server.files[labels.file] = table
        labels = dataclasses.replace(labels, address=f"{server.address}/{labels.file}", repository="")
    archive = dataclasses.replace(spec.archive, images=remote(server, packed), labels=labels)
    counted = sum(1 for line in lines if not line.startswith("t1.bmp"))
    opened = open_spec(dataclasses.replace(spec, archive=archive, images=counted, stream=streamed))
    assert len(opened) == counted
    assert opened.complete
    named = [label for label in ("opinion", "std", "votes") if opened.table[label].notna().all()]
    assert ("opinion" in named) == bool(spec.opinion)
    assert ("std" in named) == bool(spec.columns.std)
    for column in ("reference", "distortion", "split"):
        assert (opened.table[column] != "").all() == bool(getattr(spec.columns, column)), column
    assert opened.table["level"].notna().all() == bool(spec.columns.level)
    first = next(iter(decoded(opened, [0])))
    assert first.pixels is not None
    assert min(first.pixels.shape[1:]) == (448 if name == "spaq" else 40)


def test_what_names_of_files_say_becomes_labels(server: LocalServer) -> None:
    server.files = {
        "csiq.tgz": tgz({f"CSIQ/dst_imgs/{row.split(',')[1]}": png(i) for i, row in enumerate(CSIQ_ROWS)})
    }
    server.files["labels.csv"] = "\n".join(["ref_name,dist_name,dmos", *CSIQ_ROWS]).encode()
    spec = shipped_specs()["csiq"]
    assert spec.archive is not None
    archive = dataclasses.replace(
        spec.archive, images=remote(server, "csiq.tgz"), labels=remote(server, "labels.csv", LabelFile)
    )
    table = open_spec(dataclasses.replace(spec, archive=archive, images=6)).table
    assert table["distortion"].tolist() == ["AWGN"] * 3 + ["jpeg2000"] * 3
    assert table["level"].tolist() == [1, 2, 3, 1, 2, 3]
    server.files["labels.csv"] += b"\n1600.png,1600.png,0.0"
    shutil.rmtree(os.environ["QUALICLIP_CACHE"])
    with pytest.raises(DatasetError, match=r"line 8: dist_name is '1600\.png', not of the form"):
        open_spec(dataclasses.replace(spec, archive=archive, images=7))
