"""Folders of images become records: complete, restartable, and the same images that the folder source reads."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sagan_tf import data
from sagan_tf.config import Config
from sagan_tf.data import folder_to_records
from sagan_tf.errors import UserError

TOOL = (sys.executable, "-m", "sagan_tf.commands.records")
# The tool chooses TensorFlow's log level itself, unless told.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
NAMES = ("n01440764/a.JPEG", "n01440764/b.png", "n01443537/c.png", "n01443537/deeper/d.png", "n01484850/e.webp", "n01484850/f.png")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(path)
    return str(tmp_path / "images")


def make(folder, output, **options):
    return folder_to_records.make_records(folder, str(output), **{"size": 32, "shards": 3, "workers": 1, **options})


def manifest(output):
    return json.loads((output / "manifest.json").read_text())


def records(output):
    """Returns `{filename: (bytes of the image, label)}` as TensorFlow's own reader finds them."""
    found = {}
    for record in tf.data.TFRecordDataset(sorted(map(str, output.glob("*.tfrecord")))):
        features = tf.train.Example.FromString(record.numpy()).features.feature
        name = features["filename"].bytes_list.value[0].decode()
        found[name] = (features["image_raw"].bytes_list.value[0], features["label"].int64_list.value[0])
    return found


class RecordsTest:
    def test_hold_every_image_cropped_and_resized_with_its_label(self, folder, tmp_path):
        assert make(folder, tmp_path / "out") == 6
        found = records(tmp_path / "out")
        assert len(found) == 6
        for name in NAMES:
            image = Image.open(os.path.join(folder, name)).convert("RGB")
            left, top = (image.width - image.height) // 2 if image.width > image.height else 0, 0
            side = min(image.size)
            expected = image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BILINEAR)
            raw, label = found[os.path.basename(name)]
            assert raw == np.asarray(expected).tobytes()
            assert label == ["n01440764", "n01443537", "n01484850"].index(name.split("/")[0])
        assert (tmp_path / "out" / "classes.txt").read_text().split() == ["n01440764", "n01443537", "n01484850"]
        assert manifest(tmp_path / "out")["complete"] is True
        assert manifest(tmp_path / "out")["examples"] == 6

    def test_train_as_the_folder_does(self, folder, tmp_path):
        make(folder, tmp_path / "out")
        settings = {"image_size": 32, "attention_resolution": 16}
        sources = [
            data.open_source(Config(dataset=name, **settings))
            for name in (f"folder:{folder}", f"tfrecord:{tmp_path}/out/*.tfrecord")
        ]
        assert sources[0].class_names == sources[1].class_names
        batches = [next(iter(data.eval_dataset(source, 6))) for source in sources]
        rows = [
            {images.tobytes(): label for images, label in zip(batch["images"].numpy(), batch["labels"].numpy(), strict=True)}
            for batch in batches
        ]
        assert len(rows[0]) == 6
        assert rows[0] == rows[1]

    def test_flat_folder_has_no_classes(self, folder, tmp_path):
        make(os.path.join(folder, "n01440764"), tmp_path / "out", shards=1)
        assert (tmp_path / "out" / "classes.txt").read_text() == ""
        source = data.open_source(Config(dataset=f"tfrecord:{tmp_path}/out/*.tfrecord", image_size=32, attention_resolution=16))
        assert (source.num_examples, source.num_classes) == (2, 0)
        assert len(source.examples(tf.constant([0, 1]))["images"]) == 2

    def test_classes_are_spread_over_the_shards_by_seed(self, folder, tmp_path):
        first, again, other = (folder_to_records.plan(folder, 2, seed)[0] for seed in (0, 0, 1))
        assert first == again != other
        assert sorted(itertools.chain(*first.values())) == sorted(itertools.chain(*other.values()))

    def test_are_the_same_bytes_from_several_processes(self, folder, tmp_path):
        make(folder, tmp_path / "one")
        command = [
            *TOOL,
            f"--input={folder}",
            f"--output={tmp_path}/two",
            "--size=32",
            "--shards=3",
            "--workers=2",
        ]
        finished = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.startswith("6 records in ")
        assert finished.stderr == ""
        for shard in sorted(os.listdir(tmp_path / "one")):
            assert (tmp_path / "one" / shard).read_bytes() == (tmp_path / "two" / shard).read_bytes()


class RestartTest:
    def test_only_missing_shards_are_made_again(self, folder, tmp_path):
        make(folder, tmp_path / "out")
        before = records(tmp_path / "out")
        shards = sorted((tmp_path / "out").glob("*.tfrecord"))
        os.remove(shards[1])
        for shard in (shards[0], shards[2]):
            os.utime(shard, (1, 1))
        make(folder, tmp_path / "out")
        assert [shard.stat().st_mtime == 1 for shard in shards] == [True, False, True]
        assert records(tmp_path / "out") == before

    def test_a_killed_run_is_continued(self, folder, tmp_path):
        rng = np.random.default_rng(1)
        for number in range(600):
            Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(f"{folder}/n01440764/{number}.bmp")
        output = tmp_path / "out"
        command = [
            *TOOL,
            f"--input={folder}",
            f"--output={output}",
            "--size=256",
            "--shards=60",
            "--workers=1",
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if (output / "manifest.json").exists() and len(manifest(output)["shards"]) >= 2:
                break
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        state = manifest(output)
        assert not state["complete"]
        assert 2 <= len(state["shards"]) < 60
        with pytest.raises(UserError, match="not all made yet"):
            data.open_source(Config(dataset=f"tfrecord:{output}/*.tfrecord", image_size=256))
        done = next(iter(state["shards"]))
        os.utime(output / done, (1, 1))
        assert make(folder, output, size=256, shards=60) == 606
        assert (output / done).stat().st_mtime == 1
        assert len(records(output)) == 606
        assert not list(output.glob("*.tmp*"))

    def test_other_settings_are_refused(self, folder, tmp_path):
        make(folder, tmp_path / "out")
        with pytest.raises(UserError, match=r"other settings \(size 32, not 64\)"):
            make(folder, tmp_path / "out", size=64)
        os.rename(f"{folder}/n01440764/b.png", f"{folder}/n01440764/z.png")
        with pytest.raises(UserError, match="digest of names"):
            make(folder, tmp_path / "out")

    def test_unreadable_manifest_is_refused(self, folder, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "manifest.json").write_text("{")
        with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
            make(folder, tmp_path / "out")


class UnreadableImageTest:
    @pytest.fixture
    def damaged(self, folder):
        path = os.path.join(folder, NAMES[1])
        with open(path, "r+b") as file:
            file.truncate(200)
        return path

    def test_is_refused_by_name(self, folder, damaged, tmp_path):
        with pytest.raises(UserError, match=rf"{damaged} cannot be read as an image .*--skip_errors"):
            make(folder, tmp_path / "out")
        assert not manifest(tmp_path / "out")["complete"]

    def test_is_skipped_and_listed_on_request(self, folder, damaged, tmp_path):
        assert make(folder, tmp_path / "out", skip_errors=True) == 5
        assert (tmp_path / "out" / "skipped.txt").read_text().startswith(f"{damaged}: ")
        assert "b.png" not in records(tmp_path / "out")
        source = data.open_source(Config(dataset=f"tfrecord:{tmp_path}/out/*", image_size=32, attention_resolution=16))
        assert source.num_examples == 5


class CommandTest:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--input and --output are needed"),
            (["--input=/no/such/folder", "--output=/tmp/unused"], "/no/such/folder does not exist"),
        ],
    )
    def test_mistakes_are_one_sentence(self, arguments, message):
        finished = subprocess.run([*TOOL, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
        assert finished.returncode == 1
        assert finished.stderr.startswith("error: ")
        assert message in finished.stderr
        assert finished.stderr.count("\n") == 1

    def test_output_that_cannot_be_written_is_named(self, folder, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=f"--output={tmp_path}/file/out cannot be written"):
            make(folder, tmp_path / "file" / "out")
