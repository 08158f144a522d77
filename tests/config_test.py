"""The configuration: what is possible, saving, what a resumed run may change, flags and flagfiles."""

import dataclasses
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
from absl import flags

from sagan_tf import architecture
from sagan_tf import config as config_lib
from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.errors import UserError


class ValidationTest:
    """A configuration is possible, or it does not come to be."""

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"image_size": 100}, "--image_size=100 is not one of 32, 64, 128, 256."),
            ({"loss_type": "wasserstein"}, "--loss_type=wasserstein is not one of hinge, kl."),
            ({"attention_resolution": 64, "image_size": 64}, "--attention_resolution=64 does not occur in both networks at"),
            ({"batch_size": 0}, "--batch_size=0 must be at least 1."),
            ({"batch_size": 2**20 + 1}, "--batch_size=1048577 must be at most 2**20."),
            ({"batch_size": 10, "accumulation_steps": 4}, "--batch_size=10 does not divide into --accumulation_steps=4 parts."),
            ({"beta1": 1.0}, "--beta1=1.0 must be at least 0 and below 1."),
            ({"generator_learning_rate": -1e-4}, "--generator_learning_rate=-0.0001 must be positive."),
            ({"generator_learning_rate": 0}, "--generator_learning_rate=0 must be positive."),
            ({"num_classes": -2}, "--num_classes=-2 must be at least -1."),
            ({"seed": -1}, "--seed=-1 must be at least 0 and below 2**31."),
            ({"seed": 2**31}, "--seed=2147483648 must be at least 0 and below 2**31."),
            ({"train_steps": 2**63}, "--train_steps=9223372036854775808 must be at most 2**62."),
            ({"save_checkpoint_secs": 0}, "--save_checkpoint_steps and --save_checkpoint_secs are both 0"),
            ({"eval_every_steps": 5, "distribution": "multi_worker"}, "--eval_every_steps works in one process"),
            ({"z_dim": "64"}, "--z_dim='64' is not a whole number."),
            ({"image_size": 64.0}, "--image_size=64.0 is not a whole number."),
            ({"gf_dim": True}, "--gf_dim=True is not a whole number."),
            ({"num_classes": None}, "--num_classes=None is not a whole number."),
            ({"beta2": "0.9"}, "--beta2='0.9' is not a number."),
            ({"beta1": False}, "--beta1=False is not a number."),
            ({"horizontal_flip": 1}, "--horizontal_flip=1 is not true or false."),
            (
                {"augment": "color,flip"},
                "--augment=color,flip must name some of color, translation, cutout, none twice, with commas",
            ),
            ({"augment": "color, cutout"}, "--augment=color, cutout must name some of"),
            ({"augment": "color,"}, "--augment=color, must name some of"),
            ({"augment": "cutout,cutout"}, "--augment=cutout,cutout must name some of"),
            ({"augment": True}, "--augment=True is not text."),
            ({"dataset": ["faces"]}, "--dataset=['faces'] is not text."),
        ],
    )
    def test_impossible_settings_are_named(self, settings, sentence):
        for make in (lambda: Config(**settings), lambda: Config().replace(**settings)):
            with pytest.raises(UserError, match=re.escape(sentence)):
                make()

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400])
    def test_no_number_is_infinite_or_none(self, value):
        for field in dataclasses.fields(Config):
            if type(field.default) is float:
                with pytest.raises(UserError, match=f"--{field.name}=.* must be"):
                    Config(**{field.name: value})

    def test_whole_number_may_stand_for_a_float_and_numpy_numbers_for_their_like(self):
        config = Config(beta1=0, adam_epsilon=1, z_dim=np.int64(7), ema_decay=np.float32(0.5))
        assert config == Config(beta1=0.0, adam_epsilon=1.0, z_dim=7, ema_decay=0.5)
        for field in dataclasses.fields(Config):
            assert type(getattr(config, field.name)) is type(field.default)

    def test_every_field_has_a_group_and_a_help_text_and_every_number_its_range(self):
        for field in dataclasses.fields(Config):
            assert field.metadata["group"] in config_lib.GROUPS
            assert field.metadata["help"].endswith(".")
            assert field.metadata["bounds"].keys() <= {"at_least", "above", "below", "at_most"}
            if type(field.default) in (int, float):
                assert field.metadata["choices"] or {"at_least", "above"} & field.metadata["bounds"].keys()


class TablesTest:
    def test_attention_stands_where_both_networks_pass(self):
        places = {size: architecture.attention_places(size) for size in architecture.IMAGE_SIZES}
        assert places == {32: (8, 16), 64: (8, 16, 32), 128: (8, 16, 32, 64), 256: (8, 16, 32, 64, 128)}
        assert architecture.attention_places(100) == ()


class ModelDirTest:
    def save(self, directory, **settings):
        (directory / config_lib.CONFIG_FILE).write_text(Config(**settings).to_json())

    def test_round_trip(self, tmp_path):
        self.save(tmp_path, gf_dim=7, beta2=0.9, jit_compile=True)
        expected = Config(gf_dim=7, beta2=0.9, jit_compile=True, model_dir=str(tmp_path))
        assert config_lib.load(str(tmp_path)) == expected

    def test_file_of_version_0_1_is_read_and_what_it_says_is_written_as_it_was(self, tmp_path):
        text = (pathlib.Path(__file__).parent / "golden" / "config-0.1.json").read_text()  # Of the quickstart.
        (tmp_path / config_lib.CONFIG_FILE).write_text(text)
        config = config_lib.load(str(tmp_path))
        assert (config.gf_dim, config.generator_learning_rate, config.attention_pooling) == (8, 2e-4, True)
        added, removed = {"on_collapse": "warn", "augment": ""}, {"twins_cells": 3}
        written, kept = json.loads(config.to_json()), {k: v for k, v in json.loads(text).items() if k not in removed}
        assert written == kept | added
        assert json.loads(text) == kept | removed
        assert list(kept) == [name for name in written if name not in added]

    def test_missing_settings_take_their_defaults(self, tmp_path):
        (tmp_path / config_lib.CONFIG_FILE).write_text('{"gf_dim": 7, "beta1": 0}')
        assert config_lib.load(str(tmp_path)) == Config(gf_dim=7, model_dir=str(tmp_path))

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "Expecting value"),
            ("{", "Expecting property name"),
            ("[]", "it does not hold settings by name"),
            ("null", "it does not hold settings by name"),
            ('{"no_such_setting": 1}', "there is no setting no_such_setting"),
            ('{"image_size": 33}', "--image_size=33 is not one of 32, 64, 128, 256"),
            ('{"gf_dim": "64"}', "--gf_dim='64' is not a whole number"),
            ('{"gf_dim": [64]}', "--gf_dim=[64] is not a whole number"),
            ('{"beta1": NaN}', "--beta1=nan must be at least 0 and below 1"),
            ('{"generator_learning_rate": null}', "--generator_learning_rate=None is not a number"),
        ],
    )
    def test_damaged_file_and_setting_are_named(self, tmp_path, text, reason):
        path = tmp_path / config_lib.CONFIG_FILE
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(f"{path} cannot be read as a configuration ({reason}")) as caught:
            config_lib.load(str(tmp_path))
        assert str(caught.value).endswith("); restore it, or train into a new directory.")

    def test_missing_directory_and_file_are_named(self, tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            config_lib.load(str(tmp_path / "missing"))
        with pytest.raises(UserError, match="not the directory of a training run"):
            config_lib.load(str(tmp_path))

    def test_saved_file_does_not_name_its_directory(self):
        assert "model_dir" not in json.loads(Config(model_dir="/somewhere").to_json())


class ReconcileTest:
    def test_free_settings_may_change(self):
        config = config_lib.reconcile(Config(train_steps=10), {"train_steps": 20, "steps_per_loop": 5})
        assert (config.train_steps, config.steps_per_loop) == (20, 5)

    def test_another_experiment_is_refused(self):
        with pytest.raises(UserError, match="--gf_dim=64, not 32"):
            config_lib.reconcile(Config(model_dir="runs/a"), {"gf_dim": 32})
        with pytest.raises(UserError, match="--augment=color,cutout, not cutout,color"):
            config_lib.reconcile(Config(augment="color,cutout"), {"augment": "cutout,color"})

    def test_unspecified_class_count_means_the_saved_one(self):
        assert config_lib.reconcile(Config(num_classes=6), {"num_classes": -1}).num_classes == 6


def parsed(*words):
    """Returns flags of their own, one for each setting, as these words set them."""
    values = flags.FlagValues()
    cli.define_config_flags(values)
    assert values(["sagan-train", *words]) == ["sagan-train"]
    return values


class FlagsTest:
    def test_flags_that_are_not_named_take_the_defaults(self):
        assert cli.config_from_flags(parsed()) == Config()

    def test_impossible_flags_are_refused(self):
        with pytest.raises(UserError, match="--beta1=inf"):
            cli.config_from_flags(parsed("--beta1=inf"))

    def test_run_supplies_what_is_not_named(self, tmp_path):
        (tmp_path / config_lib.CONFIG_FILE).write_text(Config(gf_dim=7, num_classes=3).to_json())
        values = parsed(f"--model_dir={tmp_path}", "--train_steps=5")
        expected = Config(gf_dim=7, num_classes=3, train_steps=5, model_dir=str(tmp_path))
        assert cli.config_from_flags(values) == cli.trained_config(values) == expected
        with pytest.raises(UserError, match="--gf_dim=7, not 8"):
            cli.config_from_flags(parsed(f"--model_dir={tmp_path}", "--gf_dim=8"))

    def test_trained_run_is_asked_for(self, tmp_path):
        with pytest.raises(UserError, match="--model_dir is missing"):
            cli.trained_config(parsed())
        with pytest.raises(UserError, match="not the directory of a training run"):
            cli.trained_config(parsed(f"--model_dir={tmp_path}"))


class CommandTest:
    """The command to reproduce, given to sagan-train, means the same configuration."""

    def test_parses_back_to_the_same_configuration(self, tmp_path):
        settings = {"attention_pooling": False, "deterministic": True, "dataset": "folder:/my 'images'/$x", "adam_epsilon": 1e-7}
        settings |= {
            "image_size": 64,
            "num_classes": 5,
            "ema_decay": 0.999,
            "augment": "cutout,color",
            "eval_every_steps": 7,
            "model_dir": str(tmp_path / "a b"),
        }
        made = Config(**settings)
        name, *words = shlex.split(config_lib.reproduce_command(made, made.model_dir))
        assert name == "sagan-train"
        assert cli.config_from_flags(parsed(*words)) == made

    def test_defaults_need_no_flags(self):
        assert config_lib.reproduce_command(Config(), "x") == "sagan-train --model_dir=x"


class FlagfileTest:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / "base.cfg").write_text("# Shared.\n--gf_dim=8\n--df_dim=8\n")
        (tmp_path / "arms").mkdir()
        (tmp_path / "arms" / "near.cfg").write_text("--flagfile=../shared/base.cfg\n")
        (tmp_path / "arms" / "arm.cfg").write_text("# An arm.\n\n// Its own.\n--z_dim=4\n  --flagfile=near.cfg  \n--gf_dim=2\n")
        return tmp_path

    def test_nested_file_is_read_in_place_and_found_beside_the_one_that_names_it(self, folder, monkeypatch):
        expected = ["--z_dim=4", "--gf_dim=8", "--df_dim=8", "--gf_dim=2"]
        assert config_lib.expand_flagfile(str(folder / "arms" / "arm.cfg")) == expected
        monkeypatch.chdir(folder / "shared")
        for words in (["--flagfile=../arms/arm.cfg"], ["--flagfile", "../arms/arm.cfg"], ["-flagfile=../arms/arm.cfg"]):
            assert config_lib.expand_flagfiles(["--seed=1", *words, "--seed=2"]) == ["--seed=1", *expected, "--seed=2"]

    def test_what_names_no_file_is_left(self):
        assert config_lib.expand_flagfiles(["--flagfile=", "x", "--flagfile"]) == ["--flagfile=", "x", "--flagfile"]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (b"--flagfile=missing.cfg\n", "missing.cfg cannot be read as a flagfile: No such file"),
            (b"--flagfile=arms/../wrong.cfg\n", "wrong.cfg cannot be read as a flagfile: it names itself"),
            (b"--dataset=\xff\n", "wrong.cfg cannot be read as a flagfile: 'utf-8' codec"),
        ],
    )
    def test_file_that_cannot_be_read_is_named(self, folder, text, reason):
        (folder / "arms" / "arm.cfg").write_text("--flagfile=../wrong.cfg\n")
        (folder / "wrong.cfg").write_bytes(text)
        with pytest.raises(UserError, match=re.escape(reason)):
            config_lib.expand_flagfile(str(folder / "arms" / "arm.cfg"))
