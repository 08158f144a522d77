"""The configuration: validation, saving, and what a resumed run may change."""

import dataclasses
import json
import shlex

import pytest
from absl import flags

from sagan_tf import config as config_lib
from sagan_tf.commands import cli
from sagan_tf.config import Config
from sagan_tf.errors import UserError


class ValidationTest:
    def test_defaults_are_possible(self):
        assert Config().validate() == Config()

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"image_size": 100}, "--image_size=100"),
            ({"loss_type": "wasserstein"}, "--loss_type=wasserstein"),
            ({"attention_resolution": 64, "image_size": 64}, "--attention_resolution=64"),
            ({"batch_size": 0}, "--batch_size=0"),
            ({"batch_size": 10, "accumulation_steps": 4}, "--accumulation_steps=4"),
            ({"beta1": 1.0}, "--beta1=1.0"),
            ({"generator_learning_rate": -1e-4}, "--generator_learning_rate=-0.0001"),
            ({"generator_learning_rate": float("nan")}, "--generator_learning_rate=nan"),
            ({"num_classes": -2}, "--num_classes=-2"),
            ({"seed": -1}, "--seed=-1"),
            ({"save_checkpoint_secs": 0}, "--save_checkpoint_secs"),
        ],
    )
    def test_impossible_settings_are_named(self, settings, named):
        with pytest.raises(UserError, match=named):
            Config(**settings).validate()

    def test_every_field_has_a_group_and_a_help_text(self):
        for field in dataclasses.fields(Config):
            assert field.metadata["group"] in config_lib.GROUPS
            assert field.metadata["help"].endswith(".")


class ModelDirTest:
    def save(self, directory, **settings):
        (directory / config_lib.CONFIG_FILE).write_text(Config(**settings).to_json())

    def test_round_trip(self, tmp_path):
        self.save(tmp_path, gf_dim=7, beta2=0.9, jit_compile=True)
        expected = Config(gf_dim=7, beta2=0.9, jit_compile=True, model_dir=str(tmp_path))
        assert config_lib.load(str(tmp_path)) == expected

    @pytest.mark.parametrize("text", ["", "{", '{"no_such_setting": 1}', '{"image_size": 33}', "[]"])
    def test_damaged_file_is_named(self, tmp_path, text):
        (tmp_path / config_lib.CONFIG_FILE).write_text(text)
        with pytest.raises(UserError, match=r"config\.json"):
            config_lib.load(str(tmp_path))

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

    def test_unspecified_class_count_means_the_saved_one(self):
        assert config_lib.reconcile(Config(num_classes=6), {"num_classes": -1}).num_classes == 6


class CommandTest:
    """The command to reproduce, given to sagan-train, means the same configuration."""

    @pytest.fixture
    def parse(self, monkeypatch):
        holder = flags.FlagValues()
        monkeypatch.setattr(cli, "FLAGS", holder)
        define = {kind: lambda *a, f=f: f(*a, flag_values=holder) for kind, f in cli._DEFINE.items()}
        monkeypatch.setattr(cli, "_DEFINE", define)
        cli.define_config_flags()

        def call(command):
            name, *words = shlex.split(command)
            assert name == "sagan-train"
            assert len(holder([name, *words])) == 1
            return cli.config_from_flags()

        return call

    def test_parses_back_to_the_same_configuration(self, parse, tmp_path):
        settings = {"attention_pooling": False, "deterministic": True, "dataset": "folder:/my 'images'/$x", "adam_epsilon": 1e-7}
        settings |= {
            "image_size": 64,
            "num_classes": 5,
            "ema_decay": 0.999,
            "eval_every_steps": 7,
            "model_dir": str(tmp_path / "a b"),
        }
        made = Config(**settings).validate()
        assert parse(config_lib.reproduce_command(made, made.model_dir)) == made

    def test_defaults_need_no_flags(self):
        assert config_lib.reproduce_command(Config(), "x") == "sagan-train --model_dir=x"
