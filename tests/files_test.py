"""Files appear whole or not at all, and only regular ones are replaced."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from sagan_tf import files
from sagan_tf.errors import UserError


class WriteTest:
    def test_makes_the_directory_and_leaves_no_other_file(self, tmp_path):
        files.write(str(tmp_path / "a" / "b.txt"), "é")
        assert (tmp_path / "a" / "b.txt").read_bytes() == "é".encode()
        assert os.listdir(tmp_path / "a") == ["b.txt"]

    def test_a_write_that_fails_leaves_what_stood_there(self, tmp_path):
        path = tmp_path / "x"
        files.write(str(path), "before")
        with pytest.raises(RuntimeError), files.whole(str(path)) as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write("half")
            raise RuntimeError
        assert path.read_text() == "before"
        assert os.listdir(tmp_path) == ["x"]

    def test_readers_see_the_old_file_or_the_new_one(self, tmp_path):
        path = tmp_path / "x"
        contents = {"a" * 100_000, "b" * 100_000}
        files.write(str(path), "a" * 100_000)
        seen, done = set(), threading.Event()

        def read():
            while not done.is_set():
                seen.add(path.read_text())

        reader = threading.Thread(target=read)
        reader.start()
        for content in sorted(contents) * 50:
            files.write(str(path), content)
        done.set()
        reader.join()
        assert seen <= contents

    def test_follows_links(self, tmp_path):
        (tmp_path / "target").write_text("old")
        (tmp_path / "link").symlink_to(tmp_path / "target")
        files.write(str(tmp_path / "link"), "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_text() == "new"

    def test_writes_to_a_pipe_without_replacing_it(self, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        received = []
        reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
        reader.start()
        files.write(str(pipe), "through")
        reader.join(timeout=10)
        assert received == [b"through"]
        assert stat.S_ISFIFO(os.stat(pipe).st_mode)

    def test_a_device_stays_a_device(self):
        files.write("/dev/null", "nothing")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)

    def test_standard_output_is_written_to_though_it_is_a_pipe(self):
        program = "from sagan_tf import files; files.write('/dev/stdout', 'through')"
        assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "through"

    def test_a_directory_is_not_replaced(self, tmp_path):
        with pytest.raises(IsADirectoryError):
            files.write(str(tmp_path), "x")


class AppendLineTest:
    def test_adds_whole_lines(self, tmp_path):
        path = str(tmp_path / "lines")
        for line in ("one", "two"):
            files.append_line(path, line)
        with open(path, encoding="utf-8") as file:
            assert file.read() == "one\ntwo\n"

    @pytest.mark.parametrize("directory", ["", "ram://lines/"])
    def test_begins_a_new_line_after_half_of_one(self, tmp_path, directory):
        path = f"{directory or tmp_path}/lines"
        files.write(path, "one\nha")
        for line in ("two", "three"):
            files.append_line(path, line)
        assert files.read(path) == b"one\nha\ntwo\nthree\n"

    def test_a_failed_line_is_taken_back(self, tmp_path, monkeypatch):
        path = str(tmp_path / "lines")
        files.append_line(path, "one")

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.append_line(path, "two")
        with open(path, encoding="utf-8") as file:
            assert file.read() == "one\n"


class RemoteTest:
    """What TensorFlow's file systems have, on the one in memory."""

    def test_has_what_was_written(self):
        files.write("ram://has/a/b.txt", "é")
        assert files.read("ram://has/a/b.txt") == "é".encode()
        assert files.exists("ram://has/a/b.txt") and not files.exists("ram://has/a/c")
        assert files.is_dir("ram://has/a") and not files.is_dir("ram://has/a/b.txt")
        assert files.listing("ram://has/a") == ["b.txt"] and files.listing("ram://has/none") == []

    def test_a_write_that_fails_leaves_what_stood_there(self):
        files.write("ram://fails/x", "before")
        with pytest.raises(RuntimeError), files.whole("ram://fails/x") as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write("half")
            raise RuntimeError
        assert files.read("ram://fails/x") == b"before"
        assert files.listing("ram://fails") == ["x"]

    def test_a_file_that_is_there_is_replaced(self):
        for content in ("one", "two", "3"):
            files.write("ram://replaced/x", content)
            assert files.read("ram://replaced/x") == content.encode()
        assert files.listing("ram://replaced") == ["x"]

    def test_a_directory_goes_with_all_that_is_in_it(self):
        for name in ("1/a", "1/b/c", "2/a"):
            files.write(f"ram://gone/{name}", name)
        for name in ("1", "2/none"):
            files.remove(f"ram://gone/{name}")
        assert files.listing("ram://gone") == ["2"]
        assert not files.exists("ram://gone/1/b/c")

    def test_names_of_directories_have_no_slash(self, monkeypatch):
        """On gs:// they come with one."""
        monkeypatch.setattr(tf.io.gfile, "listdir", lambda path: ["7/", "pinned.json"])
        assert files.listing("gs://bucket/checkpoints") == ["7", "pinned.json"]

    def test_what_fails_is_an_os_error(self):
        with pytest.raises(FileNotFoundError):
            files.read("ram://none/x")
        with pytest.raises(OSError, match="s3"):
            files.write("s3://bucket/x", "")

    @pytest.mark.parametrize(
        ("path", "name", "parent"),
        [
            ("gs://bucket/a/b", "b", "gs://bucket/a"),
            ("gs://bucket/a", "a", "gs://bucket"),
            ("gs://bucket", "bucket", "gs://bucket"),
            ("/a/b/", "b", "/a"),
        ],
    )
    def test_names_and_parents(self, path, name, parent):
        assert (files.name_of(path), files.parent(path)) == (name, parent)


class ResolveTest:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("", ""),
            ("runs/mine", "runs/mine"),
            ("/runs/mine/", "/runs/mine/"),
            ("run:1/x", "run:1/x"),
            ("./gs:/x", "./gs:/x"),
            ("~/runs", "HOME/runs"),
            ("gs://bucket/run", "gs://bucket/run"),
            ("GS://Bucket/Run/", "gs://Bucket/Run"),
            ("file:///runs/mine", "/runs/mine"),
            ("FILE:///runs/mine/", "/runs/mine"),
            ("runs/a*b?{c}", "runs/a*b?{c}"),
        ],
    )
    def test_means(self, monkeypatch, path, expected):
        monkeypatch.setenv("HOME", "HOME")
        assert files.resolve(path, "output") == expected

    @pytest.mark.parametrize(
        ("path", "sentence"),
        [
            ("s3://bucket/run", r"--model_dir=s3://bucket/run: .* gs://.* not to s3://: s3:// needs the package tensorflow-io\."),
            ("nfs://host/run", "not to nfs://: choose one of them"),
            ("gs:/bucket/run", r"is not whole: write gs://BUCKET/NAME, or \./gs:/bucket/run"),
            ("gs:", "is not whole"),
            ("gs://", "is not whole"),
            ("file://runs/mine", "is not whole"),
            ("~nobody-of-this-name/run", "no such user here"),
            ("run[1]", r"no checkpoint below a name with \[ or \\ in it"),
            ("run\\1", "no checkpoint below"),
        ],
    )
    def test_refuses(self, path, sentence):
        with pytest.raises(UserError, match=sentence):
            files.resolve(path, "model_dir", checkpoints=True)

    def test_brackets_are_good_for_what_tensorflow_does_not_read(self):
        assert files.resolve("grid[1].png", "output") == "grid[1].png"

    def test_a_package_may_add_schemes(self, tmp_path, monkeypatch):
        schemes = ["", "gs"]
        monkeypatch.setattr(tf.io.gfile, "get_registered_schemes", lambda: schemes)
        monkeypatch.setattr(
            files.importlib, "import_module", lambda name: schemes.append("s3") if name == "tensorflow_io" else None
        )
        assert files.resolve("s3://bucket/run", "model_dir") == "s3://bucket/run"


HOLDER = """
import sys, time
from sagan_tf import files
with files.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


class HeldTest:
    @pytest.fixture
    def holder(self, tmp_path):
        """Another process that holds the directory."""
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()
        process.communicate()

    def test_a_second_process_is_refused_and_told_of_the_first(self, tmp_path, holder):
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        who = f"process {holder.pid} on {socket.gethostname()}, {since}"
        with pytest.raises(UserError, match=rf"--model_dir={tmp_path} is in use \({who}\)"), files.held(str(tmp_path)):
            pass

    def test_a_dead_process_is_followed_with_a_note(self, tmp_path, holder, caplog):
        holder.kill()
        holder.wait()
        with files.held(str(tmp_path)):
            assert f"taken over: process {holder.pid} on" in caplog.text

    def test_nothing_is_said_of_one_that_ended_well(self, tmp_path, caplog):
        for error in (ValueError, SystemExit, None):
            with contextlib.suppress(ValueError, SystemExit), files.held(str(tmp_path)):
                if error:
                    raise error
        assert not caplog.records
        assert (tmp_path / "training.lock").read_bytes() == b""


class SentenceTest:
    def test_writing_names_the_flag_the_path_and_the_reason(self, tmp_path):
        (tmp_path / "file").touch()
        path = str(tmp_path / "file" / "x")
        with pytest.raises(UserError, match=f"--output={path} cannot be written .*: choose another"), files.writing("output", path):
            files.write(path, "x")

    def test_told_warns_and_goes_on(self, caplog):
        with files.told("It cannot be kept"):
            raise OSError("no space")
        assert "It cannot be kept (no space)." in caplog.text

    def test_told_lets_other_errors_through(self):
        with pytest.raises(KeyError), files.told("It cannot be kept"):
            raise KeyError("x")
