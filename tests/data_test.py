"""The data sources: every one the same batches, in an order that is a function of (seed, batch number)."""

import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sagan_tf import data
from sagan_tf.config import Config
from sagan_tf.data import images
from sagan_tf.data.arrays import ArraySource
from sagan_tf.data.record_files import index_file
from sagan_tf.errors import UserError

RNG = np.random.default_rng(0)


def configure(dataset="faces", **settings):
    return Config(**{"dataset": dataset, "image_size": 32, "attention_resolution": 16, "batch_size": 8, **settings})


def all_examples(source, batch_size=7):
    batches = list(data.eval_dataset(source, batch_size))
    return tuple(np.concatenate([batch[key] for batch in batches]) for key in ("images", "labels"))


def write_image(path, height=32, width=32, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = RNG.integers(0, 256, (height, width, *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path, **options)
    return pixels


def example(**features):
    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    return tf.train.Example(
        features=tf.train.Features(feature={name.replace("__", "/"): feature(value) for name, value in features.items()})
    ).SerializeToString()


def write_records(path, count, size=32, label=lambda index: index % 3):
    pixels = RNG.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for index in range(count):
            writer.write(example(image_raw=pixels[index].tobytes(), label=label(index)))
    return pixels


def failure(dataset):
    """Iterates to the end and returns the sentence in which that fails."""
    with pytest.raises(tf.errors.OpError) as caught:
        for _ in dataset:
            pass
    return str(data.user_error(caught.value))


class OrderTest:
    def source(self):
        """Images that are read and not drawn: to the bit the same in batches of any size."""
        return ArraySource(RNG.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8), np.arange(200) % 6)

    def images_of(self, dataset, batches):
        return [batch["images"].numpy() for batch in dataset.take(batches)]

    def test_starting_later_continues_the_same_sequence(self):
        config = configure(num_classes=6)
        source = self.source()
        whole = self.images_of(data.train_dataset(source, config), 6)
        later = self.images_of(data.train_dataset(source, config, start_batch=4), 2)
        np.testing.assert_array_equal(whole[4:], later)

    def test_an_epoch_is_a_permutation_and_the_next_another(self):
        source = self.source()
        source.num_examples = 24
        source.examples = lambda indices: {"images": tf.zeros([8, 32, 32, 3]), "labels": tf.cast(indices, tf.int32)}
        labels = [batch["labels"].numpy() for batch in data.train_dataset(source, configure(num_classes=24)).take(6)]
        first, second = np.concatenate(labels[:3]), np.concatenate(labels[3:])
        np.testing.assert_array_equal(np.sort(first), np.arange(24))
        np.testing.assert_array_equal(np.sort(second), np.arange(24))
        assert (first != second).any()
        other = next(iter(data.train_dataset(source, configure(num_classes=24), data_seed=5)))["labels"].numpy()
        assert (other != first[:8]).any()

    @pytest.mark.parametrize("count", [3812, 50_000])
    def test_batches_hold_the_classes_as_evenly_as_chance_would(self, count):
        source, counts = self.source(), []
        source.num_examples = count
        # Sorted by class, as folders are.
        source.examples = lambda indices: {
            "images": tf.zeros([32, 32, 32, 3]),
            "labels": tf.cast(indices * 10 // count, tf.int32),
        }
        for seed in range(8):
            batches = data.train_dataset(source, configure(batch_size=32, num_classes=10, seed=seed)).take(119)
            counts += [np.bincount(batch["labels"], minlength=10) for batch in batches]
        chi_square = np.sum((np.array(counts) - 3.2) ** 2 / 3.2, axis=1)
        # Of 9 degrees of freedom, variance 18, and nearly independent batches.
        assert abs(chi_square.mean() - 9) < 4 * np.sqrt(18 / len(chi_square))

    def test_shards_are_the_parts_of_the_whole_batch(self):
        config, source = configure(), self.source()
        whole = next(iter(data.train_dataset(source, config)))["images"]
        parts = [next(iter(data.train_dataset(source, config, shard=(k, 4))))["images"] for k in range(4)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)

    def test_flips_mirror_about_half_of_the_images_and_others_in_each_batch(self):
        source = self.source()
        batches = [
            self.images_of(data.train_dataset(source, configure(batch_size=64, horizontal_flip=flip)), 2) for flip in (False, True)
        ]
        first, second = ([np.array_equal(a, b) for a, b in zip(*pair, strict=True)] for pair in zip(*batches, strict=True))
        assert first != second
        plain, flipped = batches[0][0], batches[1][0]
        mirrored = [np.array_equal(a[:, ::-1], b) and not np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
        same = [np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
        assert all(a or b for a, b in zip(mirrored, same, strict=True))
        assert 16 < sum(mirrored) < 48

    def test_flips_do_not_depend_on_where_the_sequence_starts_or_who_reads_it(self):
        config, source = configure(horizontal_flip=True), self.source()
        whole = self.images_of(data.train_dataset(source, config), 4)
        np.testing.assert_array_equal(self.images_of(data.train_dataset(source, config, start_batch=3), 1)[0], whole[3])
        parts = [self.images_of(data.train_dataset(source, config, 3, shard=(k, 2)), 1)[0] for k in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[3])

    def test_another_batch_size_goes_through_the_same_sequence(self):
        config, source = configure(), self.source()
        eights = self.images_of(data.train_dataset(source, config), 3)
        twelves = self.images_of(data.train_dataset(source, config, batch_size=12), 2)
        np.testing.assert_array_equal(np.concatenate(eights), np.concatenate(twelves))

    def test_batch_that_does_not_divide_among_the_workers_is_refused(self):
        with pytest.raises(UserError, match="--batch_size=8 does not divide among 3 workers"):
            data.train_dataset(self.source(), configure(), shard=(0, 3))

    def test_some_examples_are_those_that_training_begins_with(self):
        config = configure(batch_size=100, seed=5)
        source = data.open_source(config)
        expected = next(iter(data.train_dataset(source, config)))
        for name, values in data.some_examples(source, config, 100).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-5)  # A graph rounds in another order.
        assert not data.some_examples(source, config.replace(num_classes=0), 100)["labels"].numpy().any()

    def test_of_a_small_set_there_are_no_more_than_it_has(self, tmp_path):
        write_records(tmp_path / "records", 70)
        config = configure(f"tfrecord:{tmp_path}/records", num_classes=3)
        source = data.open_source(config)
        some, whole = data.some_examples(source, config, 512)["images"].numpy(), all_examples(source)[0]
        assert sorted(some.reshape(70, -1).tolist()) == sorted(whole.reshape(70, -1).tolist())

    @pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
    def test_small_sets_come_whole_in_every_epoch(self, count):
        source = self.source()
        source.num_examples = count
        source.examples = lambda indices: {"images": tf.zeros([count, 32, 32, 3]), "labels": tf.cast(indices, tf.int32)}
        for batch in data.train_dataset(source, configure(num_classes=30, batch_size=count)).take(20):
            np.testing.assert_array_equal(np.sort(batch["labels"]), np.arange(count))


class NumClassesTest:
    def test_comes_from_the_source_unless_given(self):
        source = data.open_source(configure())
        assert data.num_classes(source, configure()) == 6
        assert data.num_classes(source, configure(num_classes=0)) == 0
        with pytest.raises(UserError, match="has 6 classes"):
            data.num_classes(source, configure(num_classes=2))

    def test_classes_that_the_images_cannot_have_are_refused_at_once(self, tmp_path):
        for name in ("a", "b", "c"):
            write_image(tmp_path / "classes" / name / "1.png")
            write_image(tmp_path / "flat" / f"{name}.png")
        with pytest.raises(UserError, match=r"--num_classes=2, but .* has 3 classes: pass 3"):
            data.open_source(configure(f"folder:{tmp_path}/classes", num_classes=2))
        with pytest.raises(UserError, match=r"--num_classes=3, but .* has no labels: pass 0"):
            data.open_source(configure(f"folder:{tmp_path}/flat", num_classes=3))
        more = configure(f"folder:{tmp_path}/classes", num_classes=5)
        assert data.num_classes(data.open_source(more), more) == 5

    def test_unknown_dataset_lists_what_there_is(self):
        for name in ("foo", "folder:", "faces:3", ""):
            with pytest.raises(UserError, match="none of faces, folder:PATH, tfrecord:GLOB and tfds:NAME"):
                data.open_source(configure(name))

    def test_dataset_of_version_0_1_that_is_gone_is_named_with_its_remedy(self):
        with pytest.raises(UserError, match=r"^The dataset twins was removed in 0.2: train on --dataset=faces, into a new"):
            data.open_source(configure("twins"))

    def test_unconditional_labels_are_zero(self):
        config = configure(num_classes=0)
        batch = next(iter(data.train_dataset(data.open_source(config), config)))
        np.testing.assert_array_equal(batch["labels"], np.zeros(8))


class PreprocessTest:
    def test_matches_the_reference_steps(self, tmp_path):
        pixels = write_image(tmp_path / "a.png", 50, 71)
        expected = Image.fromarray(pixels[:, 10:60]).resize((32, 32), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(images.preprocess(tmp_path / "a.png", 32), np.asarray(expected))

    def test_transparency_is_laid_on_white(self, tmp_path):
        pixels = write_image(tmp_path / "a.png", mode="RGBA")
        alpha = pixels[..., 3:] / 255
        expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
        assert np.abs(images.preprocess(tmp_path / "a.png", 32) - expected).max() <= 1

    @pytest.mark.parametrize("extension", ["png", "jpg", "bmp", "gif", "webp"])
    def test_formats(self, tmp_path, extension):
        write_image(tmp_path / f"a.{extension}", mode="L")
        assert images.preprocess(tmp_path / f"a.{extension}", 32).shape == (32, 32, 3)

    def test_grey_of_16_bits_keeps_its_shades(self, tmp_path):
        shades = RNG.integers(0, 65536, (32, 32), dtype=np.uint16)
        Image.fromarray(shades).save(tmp_path / "a.png")
        expected = np.repeat((shades // 256)[..., None], 3, axis=2)
        np.testing.assert_array_equal(images.preprocess(tmp_path / "a.png", 32), expected)

    def test_orientation_is_obeyed(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3  # Upside down.
        pixels = write_image(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(images.preprocess(tmp_path / "a.png", 32), pixels[::-1, ::-1])

    def test_first_frame_and_transparent_colour_of_an_animation(self, tmp_path):
        frames = [Image.new("P", (32, 32), number) for number in (0, 1)]
        for frame in frames:
            frame.putpalette([255, 0, 0, 0, 0, 255])
        frames[0].paste(1, (0, 0, 16, 32))
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], transparency=1)
        pixels = images.preprocess(tmp_path / "a.gif", 32)
        assert (pixels[:, :16] == 255).all()
        assert (pixels[:, 16:] == (255, 0, 0)).all()

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("extension", ["png", "jpg", "gif", "webp"])
    def test_damaged_files_raise_only_the_errors_named(self, tmp_path, extension):
        exif = Image.Exif()
        exif[0x0112] = 6
        write_image(tmp_path / f"a.{extension}", 12, 16, **({} if extension == "gif" else {"exif": exif}))
        whole, rng = (tmp_path / f"a.{extension}").read_bytes(), np.random.default_rng(1)
        failed = 0
        for _ in range(150):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 200), 4):
                damaged[place] = rng.integers(0, 256)
            try:
                images.preprocess(bytes(damaged[: rng.integers(1, len(whole) + 1)]), 8)
            except images.DECODE_ERRORS:
                failed += 1
        assert failed > 10


class FolderTest:
    def test_subfolders_are_classes(self, tmp_path):
        pixels = [write_image(tmp_path / name) for name in ("b/1.png", "b/deeper/2.png", "a/3.PNG")]
        source = data.open_source(configure(f"folder:{tmp_path}"))
        assert (source.num_examples, source.num_classes, source.class_names) == (3, 2, ("a", "b"))
        pictures, labels = all_examples(source)
        np.testing.assert_array_equal(labels, [0, 1, 1])
        expected = np.stack([pixels[2], pixels[0], pixels[1]]) * 2.0 / 255 - 1
        np.testing.assert_allclose(pictures, expected, atol=1e-6)

    def test_flat_folder_is_unlabelled(self, tmp_path):
        write_image(tmp_path / "1.png")
        source = data.open_source(configure(f"folder:{tmp_path}"))
        assert (source.num_examples, source.num_classes) == (1, 0)

    def test_batches_larger_than_the_folder(self, tmp_path):
        write_image(tmp_path / "1.png")
        config = configure(f"folder:{tmp_path}", num_classes=0)
        assert next(iter(data.train_dataset(data.open_source(config), config)))["images"].shape == (8, 32, 32, 3)

    def test_unusable_folders_are_refused(self, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            data.open_source(configure(f"folder:{tmp_path}/none"))
        with pytest.raises(UserError, match="holds no images"):
            data.open_source(configure(f"folder:{tmp_path}"))
        (tmp_path / "empty_class").mkdir()
        with pytest.raises(UserError, match=r"empty_class holds no images"):
            data.open_source(configure(f"folder:{tmp_path}"))
        write_image(tmp_path / "1.png")
        with pytest.raises(UserError, match="both images and class folders"):
            data.open_source(configure(f"folder:{tmp_path}"))

    def test_file_in_place_of_a_folder_is_refused(self, tmp_path):
        write_image(tmp_path / "1.png")
        with pytest.raises(UserError, match=r"1\.png is a file: name the folder"):
            data.open_source(configure(f"folder:{tmp_path}/1.png"))

    def test_folder_named_like_an_image_is_a_class(self, tmp_path):
        write_image(tmp_path / "a.png" / "1.png")
        assert data.open_source(configure(f"folder:{tmp_path}")).class_names == ("a.png",)

    def test_only_corrupt_images_end_the_run_each_time(self, tmp_path):
        for number in (1, 2):
            (tmp_path / f"{number}.png").write_bytes(b"not an image")
        source = data.open_source(configure(f"folder:{tmp_path}", skip_corrupt_records=9))
        for _ in range(2):
            assert failure(data.eval_dataset(source, 2)) == "None of the 2 examples can be read."

    def test_corrupt_images_are_reported_once_and_replaced_alike_after_a_restart(self, tmp_path, caplog):
        for number in range(8):
            write_image(tmp_path / f"{number}.png")
        (tmp_path / "3.png").write_bytes(b"not an image")
        config = configure(f"folder:{tmp_path}", num_classes=0, skip_corrupt_records=1)
        with caplog.at_level("WARNING"):
            whole = [batch["images"].numpy() for batch in data.train_dataset(data.open_source(config), config).take(4)]
        (report,) = (record.getMessage() for record in caplog.records if "Passing over" in record.getMessage())
        assert f"{tmp_path}/3.png" in report
        assert "(1 of at most 1)" in report
        later = next(iter(data.train_dataset(data.open_source(config), config, start_batch=3)))["images"]
        np.testing.assert_array_equal(later, whole[3])

    def test_corrupt_image_is_named_or_passed_over(self, tmp_path):
        for name in ("1", "3"):
            write_image(tmp_path / f"{name}.png")
        (tmp_path / "2.png").write_bytes(b"not an image")
        source = data.open_source(configure(f"folder:{tmp_path}"))
        message = failure(data.eval_dataset(source, 3))
        assert "2.png cannot be read as an image" in message
        assert "--skip_corrupt_records" in message
        with pytest.raises(UserError, match=r"^[^:]*2\.png cannot be read as an image"):  # Read directly, the same sentence.
            data.open_source(configure(f"folder:{tmp_path}")).examples(tf.constant([1]))
        source = data.open_source(configure(f"folder:{tmp_path}", skip_corrupt_records=1))
        pictures, _ = all_examples(source)
        np.testing.assert_array_equal(pictures[1], pictures[2])

    def test_too_many_corrupt_images_end_the_run(self, tmp_path):
        write_image(tmp_path / "0.png")
        for number in (1, 2, 3):
            (tmp_path / f"{number}.png").write_bytes(b"not an image")
        source = data.open_source(configure(f"folder:{tmp_path}", skip_corrupt_records=2))
        assert "more than --skip_corrupt_records=2" in failure(data.eval_dataset(source, 4))


class TFRecordTest:
    def open(self, pattern, **settings):
        return data.open_source(configure(f"tfrecord:{pattern}", **{"num_classes": 3, **settings}))

    def test_raw_records_of_several_files(self, tmp_path):
        pixels = np.concatenate([write_records(tmp_path / "a.tfrecord", 5), write_records(tmp_path / "b.tfrecord", 4)])
        source = self.open(tmp_path / "*.tfrecord")
        pictures, labels = all_examples(source)
        np.testing.assert_allclose(pictures, pixels * 2.0 / 255 - 1, atol=1e-6)
        np.testing.assert_array_equal(labels, [0, 1, 2, 0, 1, 0, 1, 2, 0])

    def test_encoded_records_are_cropped_and_resized(self, tmp_path):
        pixels, files = RNG.integers(0, 256, (2, 40, 60, 3), dtype=np.uint8), []
        for picture in pixels:
            file = io.BytesIO()
            Image.fromarray(picture).save(file, "PNG")
            files.append(file.getvalue())
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
            for label, file in enumerate(files):
                writer.write(example(image__encoded=file, image__class__label=label))
        pictures, labels = all_examples(self.open(tmp_path / "a.tfrecord"))
        expected = np.stack([images.preprocess(file, 32) for file in files])
        np.testing.assert_allclose(pictures, expected * 2.0 / 255 - 1, atol=1e-6)
        np.testing.assert_array_equal(labels, [0, 1])

    def test_index_holds_the_offsets_that_tensorflow_wrote(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 6)
        raw = (tmp_path / "a.tfrecord").read_bytes()
        expected = [record.numpy() for record in tf.data.TFRecordDataset(str(tmp_path / "a.tfrecord"))]
        assert [raw[start : start + length] for start, length in index_file(str(tmp_path / "a.tfrecord"))] == expected

    def test_classes_file_gives_the_classes(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 3)
        with pytest.raises(UserError, match="does not say how many classes"):
            self.open(tmp_path / "a.tfrecord", num_classes=-1)
        (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
        assert self.open(tmp_path / "a.tfrecord", num_classes=-1).class_names == ("cat", "dog", "owl")

    def test_truncated_file_is_named_before_training(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 3)
        with open(tmp_path / "a.tfrecord", "r+b") as file:
            file.truncate(os.path.getsize(tmp_path / "a.tfrecord") - 100)
        with pytest.raises(UserError, match=r"a\.tfrecord is truncated: its record at byte \d+ ends 100 bytes after"):
            self.open(tmp_path / "a.tfrecord")

    def test_damaged_header_is_named(self, tmp_path):
        (tmp_path / "a.tfrecord").write_bytes(b"\0" * 100)
        with pytest.raises(UserError, match="damaged at byte 0"):
            self.open(tmp_path / "a.tfrecord")

    def flip_byte(self, path, record):
        start, length = index_file(str(path))[record]
        with open(path, "r+b") as file:
            file.seek(start + length // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        return start - 12

    def test_flipped_byte_is_named_or_passed_over(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 4)
        at = self.flip_byte(tmp_path / "a.tfrecord", 2)
        message = failure(data.eval_dataset(self.open(tmp_path / "a.tfrecord"), 4))
        assert f"byte {at} of {tmp_path}/a.tfrecord does not match its checksum" in message
        _, labels = all_examples(self.open(tmp_path / "a.tfrecord", skip_corrupt_records=1))
        np.testing.assert_array_equal(labels, [0, 1, 0, 0])

    def test_file_deleted_during_the_run_is_named(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 4)
        source = self.open(tmp_path / "a.tfrecord")
        os.remove(tmp_path / "a.tfrecord")
        assert "No such file" in failure(data.eval_dataset(source, 4))

    def test_records_of_another_size_are_refused(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 2, size=64)
        with pytest.raises(UserError, match=r"hold images of 64x64 pixels, not 32x32: pass --image_size=64, or .* --size=32"):
            self.open(tmp_path / "a.tfrecord")

    def test_mixed_sizes_are_named(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 2)
        write_records(tmp_path / "b.tfrecord", 2, size=16)
        message = failure(data.eval_dataset(self.open(tmp_path / "*.tfrecord"), 4))
        assert "b.tfrecord holds images of 16x16 pixels, not 32x32" in message

    def refusal(self, pattern, **settings):
        with pytest.raises(UserError) as caught:
            self.open(pattern, **settings)
        return str(caught.value)

    def test_directory_in_place_of_a_pattern_is_refused(self, tmp_path):
        assert f"name its files, as in 'tfrecord:{tmp_path}/*.tfrecord'" in self.refusal(tmp_path)
        assert "no file matches" in self.refusal(tmp_path / "*.tfrecord")

    def test_text_files_beside_the_records_are_not_taken_for_records(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 3)
        (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
        (tmp_path / "skipped.txt").write_text("b.png: broken\n")
        assert self.open(tmp_path / "*").num_examples == 3

    def test_compressed_records_are_refused(self, tmp_path):
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord"), "GZIP") as writer:
            writer.write(b"record")
        assert "is compressed" in self.refusal(tmp_path / "a.tfrecord")

    def test_other_file_systems_give_the_same(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 5)
        (tmp_path / "manifest.json").write_text(json.dumps({"complete": True, "shards": {"a.tfrecord": 5}}))
        local, remote = (all_examples(self.open(f"{prefix}{tmp_path}/*.tfrecord")) for prefix in ("", "file://"))
        for mine, theirs in zip(local, remote, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        with open(tmp_path / "a.tfrecord", "r+b") as file:
            file.truncate(5000)
        assert "truncated" in self.refusal(f"file://{tmp_path}/*.tfrecord")

    def test_number_of_classes_is_that_of_the_configuration_without_a_classes_file(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 3)
        assert self.open(tmp_path / "a.tfrecord").num_classes == 3
        (tmp_path / "classes.txt").write_text("cat\ndog\nowl\nrat\n")
        assert "has 4 classes" in self.refusal(tmp_path / "a.tfrecord")

    def test_labels_are_not_looked_at_without_classes(self, tmp_path):
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
            writer.write(example(image_raw=bytes(32 * 32 * 3)))
            writer.write(example(image_raw=bytes(32 * 32 * 3), label=-1))
        config = configure(f"tfrecord:{tmp_path}/a.tfrecord", num_classes=0, batch_size=2)
        batch = next(iter(data.train_dataset(data.open_source(config), config)))
        np.testing.assert_array_equal(batch["labels"], [0, 0])

    def test_damaged_first_record_is_named_or_passed_over(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 3)
        self.flip_byte(tmp_path / "a.tfrecord", 0)
        assert "the record at byte 0" in self.refusal(tmp_path / "a.tfrecord")
        _, labels = all_examples(self.open(tmp_path / "a.tfrecord", skip_corrupt_records=1))
        np.testing.assert_array_equal(labels, [1, 1, 2])

    @pytest.mark.parametrize(
        ("record", "fault"),
        [(b"\xff\xff", r"is not a tf\.train\.Example"), (None, "has no label"), (b"", "has no image_raw")],
    )
    def test_record_of_another_kind_is_named_or_passed_over(self, tmp_path, record, fault):
        write_records(tmp_path / "a.tfrecord", 2)
        with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecord")) as writer:
            writer.write(example(image_raw=bytes(32 * 32 * 3)) if record is None else record)
        assert re.search(rf"byte 0 of .*b\.tfrecord {fault}", failure(data.eval_dataset(self.open(tmp_path / "*.tfrecord"), 3)))
        _, labels = all_examples(self.open(tmp_path / "*.tfrecord", skip_corrupt_records=1))
        np.testing.assert_array_equal(labels, [0, 1, 0])

    def test_corrupt_encoded_image_is_named(self, tmp_path):
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
            writer.write(example(image__encoded=b"not an image", image__class__label=0))
        message = failure(data.eval_dataset(self.open(tmp_path / "a.tfrecord"), 1))
        assert "a.tfrecord holds no image that can be read" in message

    @pytest.mark.parametrize("label", [3, -1])
    def test_label_out_of_range_is_named(self, tmp_path, label):
        write_records(tmp_path / "a.tfrecord", 3, label=lambda index: label if index == 1 else 0)
        message = failure(data.eval_dataset(self.open(tmp_path / "a.tfrecord"), 3))
        assert f"has label {label}, outside 0 to 2" in message

    def test_unknown_records_are_refused(self, tmp_path):
        with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
            writer.write(example(pixels=b"", target=1))
        with pytest.raises(UserError, match="hold pixels, target; wanted are"):
            self.open(tmp_path / "a.tfrecord")
        with tf.io.TFRecordWriter(str(tmp_path / "b.tfrecord")) as writer:
            writer.write(b"\xff\xff not a protobuf")
        with pytest.raises(UserError, match=r"not a tf\.train\.Example"):
            self.open(tmp_path / "b.tfrecord")

    def test_manifest_is_checked(self, tmp_path):
        write_records(tmp_path / "a.tfrecord", 3)

        def manifest(**content):
            (tmp_path / "manifest.json").write_text(json.dumps(content))

        manifest(complete=True, shards={"a.tfrecord": 3})
        self.open(tmp_path / "*.tfrecord")
        manifest(complete=True, shards={"a.tfrecord": 4})
        with pytest.raises(UserError, match=r"holds 3 records, but manifest\.json says 4"):
            self.open(tmp_path / "*.tfrecord")
        manifest(complete=True, shards={"a.tfrecord": 3, "b.tfrecord": 3})
        with pytest.raises(UserError, match=r"missing: b\.tfrecord"):
            self.open(tmp_path / "*.tfrecord")
        manifest(complete=False, shards={})
        with pytest.raises(UserError, match="not all made yet"):
            self.open(tmp_path / "*.tfrecord")
        manifest(complete=True, shards={})
        with pytest.raises(UserError, match=r"a\.tfrecord is not listed"):
            self.open(tmp_path / "*.tfrecord")
        (tmp_path / "manifest.json").write_text("{")
        with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
            self.open(tmp_path / "*.tfrecord")

    def test_several_directories_must_agree(self, tmp_path):
        for name in ("1", "2"):
            (tmp_path / name).mkdir()
            write_records(tmp_path / name / "a.tfrecord", 2)
            (tmp_path / name / "classes.txt").write_text("cat\ndog\nowl\n")
            (tmp_path / name / "manifest.json").write_text(json.dumps({"complete": True, "shards": {"a.tfrecord": 2}}))
        assert self.open(tmp_path / "?" / "*.tfrecord").num_examples == 4
        (tmp_path / "2" / "classes.txt").write_text("dog\ncat\nowl\n")
        assert "differ" in self.refusal(tmp_path / "?" / "*.tfrecord")
        (tmp_path / "2" / "manifest.json").write_text(json.dumps({"complete": True, "shards": {"a.tfrecord": 3}}))
        assert "holds 2 records, but manifest.json says 3" in self.refusal(tmp_path / "?" / "*.tfrecord")


class TFDSTest:
    @pytest.fixture(scope="class")
    def prepared(self, tmp_path_factory):
        """A prepared dataset on local files, in both of TFDS's formats: `{format: data_dir}`, and its pictures."""
        tfds = pytest.importorskip("tensorflow_datasets")
        pictures = [RNG.integers(0, 256, (32 + 4 * (i % 3), 32, 3), dtype=np.uint8) for i in range(10)]

        class LocalImages(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                # Two labels, as in CIFAR-100; the one called "label" counts, whatever their order.
                features = {"coarse_label": tfds.features.ClassLabel(num_classes=3)}
                features |= {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
                features = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

            def _split_generators(self, _):
                return {"train": self._generate_examples(True), "test": self._generate_examples(False)}

            def _generate_examples(self, labelled):
                for number, picture in enumerate(pictures):
                    yield number, {"image": picture, "label": number % 2 if labelled else -1, "coarse_label": 2}

        directories = {}
        for kind in ("tfrecord", "array_record"):
            directories[kind] = str(tmp_path_factory.mktemp(kind))
            LocalImages(data_dir=directories[kind], file_format=kind).download_and_prepare()
        return directories, pictures

    def open(self, data_dir, **settings):
        return data.open_source(configure("tfds:local_images", data_dir=data_dir, **settings))

    @pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
    @pytest.mark.parametrize(
        ("split", "wanted"),
        [
            ("train", [*range(10)]),
            ("train[:50%]", [*range(5)]),
            ("train[7:]", [7, 8, 9]),
            ("train[8:]+train[1:3]", [8, 9, 1, 2]),
        ],
    )
    def test_reads_splits_by_index(self, prepared, kind, split, wanted):
        directories, pictures = prepared
        source = self.open(directories[kind], data_split=split)
        assert (source.num_examples, source.num_classes) == (len(wanted), 2)
        images_read, labels = all_examples(source, batch_size=4)
        np.testing.assert_array_equal(labels, [number % 2 for number in wanted])
        for picture, number in zip(images_read, wanted, strict=True):
            extra = (pictures[number].shape[0] - 32) // 2
            np.testing.assert_allclose(picture, pictures[number][extra : extra + 32] * 2.0 / 255 - 1, atol=1e-6)

    @pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
    def test_unlabelled_split_is_refused_or_read_without_classes(self, prepared, kind):
        directories, _ = prepared
        message = failure(data.eval_dataset(self.open(directories[kind], data_split="test"), 4))
        assert "has label -1, outside 0 to 1" in message
        assert "test" in message
        config = configure("tfds:local_images", data_dir=directories[kind], data_split="test", num_classes=0)
        np.testing.assert_array_equal(next(iter(data.train_dataset(data.open_source(config), config)))["labels"], np.zeros(8))

    def test_damaged_file_is_named_or_passed_over(self, prepared, tmp_path):
        directories, pictures = prepared
        shutil.copytree(directories["tfrecord"], tmp_path / "copy")
        (file,) = (tmp_path / "copy").glob("**/*train.tfrecord*")
        start, length = index_file(str(file))[4]
        content = bytearray(file.read_bytes())
        content[start + length // 2] ^= 1
        file.write_bytes(content)
        message = failure(data.eval_dataset(self.open(str(tmp_path / "copy")), 4))
        assert f"byte {start - 12} of {file} does not match its checksum" in message
        images_read, labels = all_examples(self.open(str(tmp_path / "copy"), skip_corrupt_records=1))
        assert len(labels) == len(pictures)
        np.testing.assert_array_equal(images_read[4], images_read[5])

    def test_what_is_not_there_is_named(self, prepared, tmp_path):
        directories, _ = prepared
        with pytest.raises(UserError, match=r"--data_split=dev is none of .*: .*train"):
            self.open(directories["tfrecord"], data_split="dev")
        with pytest.raises(UserError, match="not known to TFDS"):
            data.open_source(configure("tfds:no_such_dataset", data_dir=str(tmp_path)))
        with pytest.raises(UserError, match=r"not prepared.*tfds\.load\('mnist'"):
            data.open_source(configure("tfds:mnist", data_dir=str(tmp_path)))
