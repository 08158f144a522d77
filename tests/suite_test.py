"""Suites of flagfiles: what they say, and what is planned from them."""

import pathlib

import pytest

from sagan_tf.errors import UserError
from sagan_tf.experiments import suite as suite_lib

ROOT = pathlib.Path(__file__).parent.parent


def write_suite(folder, **arms):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in arms.items():
        (folder / f"{name}.cfg").write_text("\n".join(["--image_size=32", "--attention_resolution=0", *lines]) + "\n")
    return str(folder)


class SettingsTest:
    def test_are_read_as_the_commands_read_them(self, tmp_path):
        lines = ["# A comment.", "--dataset=folder:a b=c", "--beta1=1e-1", "--noattention_pooling", "--jit_compile", "--data_dir="]
        lines += [
            "--horizontal_flip=True",
            "--beta1=.5",
            "--undefok=real_images,other",
            "--real_images=80",
            "--other=1",
            "-z_dim=4",
        ]
        (tmp_path / "a.cfg").write_text("\n".join(lines) + "\n")
        assert suite_lib.read_settings(str(tmp_path / "a.cfg")) == {
            "dataset": "folder:a b=c",
            "beta1": 0.5,
            "attention_pooling": False,
            "jit_compile": True,
            "data_dir": "",
            "horizontal_flip": True,
            "real_images": 80,
            "z_dim": 4,
        }

    def test_base_is_no_arm(self, tmp_path):
        folder = write_suite(tmp_path / "suite", base=["--beta1=0.25"])
        (tmp_path / "suite" / "a.cfg").write_text("--flagfile=base.cfg\n--beta2=0.5\n")
        (arm,) = suite_lib.load_suite(folder).arms.values()
        assert (arm.config.image_size, arm.config.beta1, arm.config.beta2) == (32, 0.25, 0.5)


class PlanTest:
    @pytest.fixture(scope="class")
    def suite(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("suites") / "tiny"
        return suite_lib.load_suite(write_suite(folder, none=[], attention_8=["--attention_resolution=8"]))

    def test_every_arm_comes_with_the_first_seed_before_the_next(self, suite):
        names = [job.name for job in suite_lib.plan(suite, "5,2")]
        assert names == ["none-seed5", "attention_8-seed5", "none-seed2", "attention_8-seed2"]

    @pytest.mark.parametrize("shards", [1, 2, 3, 30])
    def test_shards_partition_the_suite(self, shards):
        study = suite_lib.load_suite(str(ROOT / "flags" / "study"))
        parts = [[job.name for job in suite_lib.plan(study, "0,1,2", "", f"{i}/{shards}")] for i in range(1, shards + 1)]
        assert sorted(name for part in parts for name in part) == sorted(job.name for job in suite_lib.plan(study, "0,1,2"))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_arms_of_the_same_settings_share_a_run(self):
        study = suite_lib.load_suite(str(ROOT / "flags" / "study"))
        assert ("none", "sn_gd_ttur") in [job.names for job in suite_lib.plan(study)]
        (job,) = suite_lib.plan(study, "0", "sn_gd_ttur")
        assert job.name == "none-seed0"

    def test_arms_that_differ_in_intra_fid_or_name_alone_share_a_run(self):
        jobs = {job.names: job for job in suite_lib.plan(suite_lib.load_suite(str(ROOT / "flags" / "paper")))}
        assert jobs["attention_64", "table2_sagan"].evaluation() == {"intra_fid_samples": 50}
        assert jobs["attention_32",].evaluation() == {}
        assert ("none", "sn_gd_ttur") in jobs
        assert len(jobs) == 11

    def test_refuses_what_it_cannot_plan(self, suite):
        for arguments, text in (
            (("0", "attention_9"), "attention_9 is none of the suite's: none, attention_8"),
            (("0,0",), "--seeds=0,0"),
            (("a",), "--seeds=a"),
            (("0", "", "0/2"), "--shard=0/2"),
            (("0", "", "3/2"), "--shard=3/2"),
            (("0", "", "1"), "--shard=1 "),
        ):
            with pytest.raises(UserError, match=text):
                suite_lib.plan(suite, *arguments)


class ScaleTest:
    def test_places_follow_the_image_size(self):
        loaded = suite_lib.load_suite(str(ROOT / "flags" / "paper"), str(ROOT / "flags" / "scale" / "faces32.cfg"))
        assert loaded.left_out.keys() == {"attention_8", "attention_16", "residual_8", "residual_16"}
        assert loaded.left_out["attention_8"] == "8 of 128 px is 2 of 32 px"
        assert loaded.scale["places"] == {"32": 8, "64": 16}
        places = {name: arm.config.attention_resolution for name, arm in loaded.arms.items()}
        assert (places["attention_64"], places["attention_32"], places["residual_64"], places["none"]) == (16, 8, 16, 0)
        with pytest.raises(UserError, match="attention_16 does not exist at this scale: 16 of 128 px is 4 of 32"):
            suite_lib.plan(loaded, "0", "attention_16")

    def test_settings_replace_those_of_every_arm(self):
        loaded = suite_lib.load_suite(str(ROOT / "flags" / "paper"), str(ROOT / "flags" / "scale" / "faces32.cfg"))
        for arm in loaded.arms.values():
            assert (arm.config.dataset, arm.config.gf_dim, arm.config.train_steps) == ("faces", 8, 4000)
            assert arm.config.num_classes == -1
        assert loaded.arms["baseline"].config.generator_learning_rate == 2e-4

    def test_every_scale_fits_a_suite_of_its_size(self):
        for path in (ROOT / "flags" / "scale").glob("*.cfg"):
            loaded = suite_lib.load_suite(str(ROOT / "flags" / "study"), str(path))
            assert not loaded.left_out
            assert loaded.arms["attention_16"].config.attention_resolution == 16

    def test_may_not_decide_in_what_arms_differ(self, tmp_path):
        folder = write_suite(tmp_path / "suite", a=["--beta1=0.1"], b=["--beta1=0.2"])
        (tmp_path / "scale.cfg").write_text("--beta1=0.5\n")
        with pytest.raises(UserError, match=r"sets --beta1, in which the arms .* differ"):
            suite_lib.load_suite(folder, str(tmp_path / "scale.cfg"))


class RefusalTest:
    def test_impossible_suites(self, tmp_path):
        for folder, text in (
            (str(tmp_path / "nowhere"), "holds no flagfiles"),
            (write_suite(tmp_path / "unknown", a=["--no_such_setting=1"]), "a.cfg cannot be read as a flagfile: .*no_such_setting"),
            (write_suite(tmp_path / "word", a=["beta1"]), "'beta1' is not a flag"),
            (write_suite(tmp_path / "wrong", a=["--beta1=2"]), "a.cfg: --beta1=2.0 must be"),
        ):
            with pytest.raises(UserError, match=text):
                suite_lib.load_suite(folder)
        with pytest.raises(UserError, match=r"none\.cfg cannot be read"):
            suite_lib.load_suite(str(ROOT / "flags" / "study"), str(tmp_path / "none.cfg"))

    @pytest.mark.parametrize(
        "line",
        ["--beta1=x", "--z_dim=1.5", "--jit_compile=maybe", "--z_dim", "--dataset", "dataset", "--nodataset", "--undefined=1"],
    )
    def test_settings_that_are_none(self, tmp_path, line):
        with pytest.raises(UserError, match="a.cfg cannot be read as a flagfile: .*" + line.partition("=")[0]):
            suite_lib.load_suite(write_suite(tmp_path / "suite", a=[line]))
