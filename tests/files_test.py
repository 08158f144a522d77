"""Files appear whole or not at all, and only regular ones are replaced."""

import os
import stat
import threading

import pytest

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
