"""The explorer page: small, self-contained, and right in a real browser."""

import base64
import json
import re
import shutil
import zlib

import numpy as np
import pytest

from sagan_tf.attention import explorer
from sagan_tf.attention.maps import Sample
from sagan_tf.errors import UserError

GAMMAS = {"generator": 0.25, "discriminator": -0.5}
LABELS = (0, 0, 2, 2, 2, 5)


def random_maps(rng, height, width, rows, columns, scale=1.0):
    """Returns `[height, width, rows, columns]`, each query's map summing to 1."""
    scores = rng.standard_normal((height, width, rows * columns)) * scale
    maps = np.exp(scores - scores.max(-1, keepdims=True))
    return (maps / maps.sum(-1, keepdims=True)).reshape(height, width, rows, columns).astype(np.float32)


def random_samples():
    rng = np.random.default_rng(0)
    return [
        Sample(
            rng.integers(0, 256, (16, 16, 3)).astype(np.uint8),
            label,
            {"generator": random_maps(rng, 8, 8, 4, 4), "discriminator": random_maps(rng, 4, 4, 2, 2)},
        )
        for label in LABELS
    ]


def data_of(document):
    """Returns the data inside a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', document, re.DOTALL)[1])


def stored(data, index, name):
    """Returns maxima and maps of one sample in a page's data, decoded."""
    network = next(network for network in data["networks"] if network["name"] == name)
    raw = zlib.decompress(base64.b64decode(data["samples"][index]["maps"][name]))
    count = int(np.prod(network["grid"]))
    peaks = np.frombuffer(raw, "<f4", count).reshape(network["grid"])
    return peaks, np.frombuffer(raw, np.uint8, offset=4 * count).reshape(network["grid"] + network["keys"])


class PageTest:
    def test_holds_each_map_relative_to_its_maximum(self):
        samples = random_samples()
        data = data_of(explorer.page(samples, GAMMAS, "run"))
        assert data["levels"] == 255
        assert [(n["name"], n["gamma"]) for n in data["networks"]] == list(GAMMAS.items())
        for index, sample in enumerate(samples):
            for name, maps in sample.maps.items():
                peaks, values = stored(data, index, name)
                assert (values.max((2, 3)) == 255).all()
                np.testing.assert_allclose(values / 255 * peaks[..., None, None], maps, atol=0.5001 * peaks.max() / 255)

    def test_nothing_in_it_ends_the_script_or_is_loaded(self):
        title = "</script><script>alert('{{data}}')</script>"
        document = explorer.page(random_samples()[:1], GAMMAS, title)
        assert document.count("</script>") == 2
        assert data_of(document)["title"] == title
        assert not re.search(r"(src|href)=\"(?!data:)", document)
        assert "http:" not in document and "https:" not in document

    def test_large_maps_are_reduced_and_still_sum_to_one(self):
        maps = random_maps(np.random.default_rng(1), 64, 64, 32, 32)
        reduced = explorer.reduce_map(maps)
        assert reduced.shape == (32, 32, 16, 16)
        np.testing.assert_allclose(reduced.sum((2, 3)), 1.0, rtol=1e-5)
        np.testing.assert_allclose(reduced[3, 5, 7, 2], maps[6:8, 10:12, 14:16, 4:6].sum((2, 3)).mean(), rtol=1e-5)
        small = random_maps(np.random.default_rng(1), 16, 16, 8, 8)
        assert explorer.reduce_map(small) is small

    @pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
    def test_36_samples_of_128_px_stay_under_15_mb(self, scale):
        """Noise, which hardly compresses, in images and maps of both networks; trained maps are smoother."""
        rng = np.random.default_rng(2)
        image = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
        maps = random_maps(rng, 32, 32, 16, 16, scale)
        samples = [Sample(image, 0, {"generator": maps, "discriminator": maps})] * 36
        document = explorer.page(samples, GAMMAS, "large")
        assert len(document.encode()) <= 15_000_000
        data = data_of(document)
        peaks, values = stored(data, 0, "generator")
        assert data["levels"] >= 15
        error = (0.5 / data["levels"] + 0.5 / 255) * peaks[..., None, None] + 1e-7  # Rounded twice.
        assert (np.abs(values / data["levels"] * peaks[..., None, None] - maps) <= error).all()

    def test_too_many_samples_are_refused(self, monkeypatch):
        monkeypatch.setattr(explorer, "MAX_BYTES", 20_000)
        with pytest.raises(UserError, match="lower --samples_per_class"):
            explorer.page(random_samples(), GAMMAS, "run")


def find(*names):
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    chromium, driver_path = find("chromium", "chromium-browser", "google-chrome", "chrome"), find("chromedriver")
    if not (chromium and driver_path):
        pytest.skip("no Chromium with chromedriver: on Debian, apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
        "--window-size=1200,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(explorer.page(random_samples(), GAMMAS, "A run, step 8"), encoding="utf-8")
    return path


@pytest.fixture
def opened(browser, document):
    """The page, freshly loaded, the first sample's map on it."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.get_log("performance")  # Forgets what the browser's own first page and the tests before have requested.
    browser.get(document.as_uri())
    wait_for(browser, "generator/0/4/4")
    return browser


def wait_for(browser, shown):
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return document.getElementById('overlay').dataset.shown"
    WebDriverWait(browser, 10).until(lambda b: b.execute_script(script) == shown, f"{shown} is not shown")


def overlay_alpha(browser):
    """Returns what the overlay's pixels say, `[h, w]`, 255 where the map is at its maximum."""
    width, height, pixels = browser.execute_script(
        "const c = document.getElementById('overlay');"
        "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
    )
    return np.array(pixels).reshape(height, width, 4)[..., 3]


def assert_shows(browser, network, sample, row, column):
    wait_for(browser, f"{network}/{sample}/{row}/{column}")
    map_ = random_samples()[sample].maps[network][row, column]
    np.testing.assert_array_equal(overlay_alpha(browser), np.rint(255 * map_ / map_.max()))


def at_cell(browser, row, column, rows=8, columns=8):
    """Returns the centre of a query's cell, in pixels of the window."""
    box = browser.execute_script(
        "const b = document.getElementById('picture').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    return round(box[0] + (column + 0.5) * box[2] / columns), round(box[1] + (row + 0.5) * box[3] / rows)


def mouse(browser, x, y):
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x, "y": y})


def send(browser, *keys):
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


class BrowserTest:
    def test_pointer_shows_the_map_of_the_point_under_it(self, opened):
        assert_shows(opened, "generator", 0, 4, 4)
        for row, column in ((0, 0), (2, 6), (7, 7)):
            mouse(opened, *at_cell(opened, row, column))
            assert_shows(opened, "generator", 0, row, column)

    def test_sentence_says_where_and_how_much(self, opened):
        mouse(opened, *at_cell(opened, 2, 6))
        wait_for(opened, "generator/0/2/6")
        map_ = random_samples()[0].maps["generator"][2, 6]
        i, j = np.unravel_index(map_.argmax(), map_.shape)
        text = opened.find_element("id", "readout").text
        assert f"Point (13, 5) looks most at ({4 * j + 2}, {4 * i + 2})" in text
        assert f"{100 * map_.max():.1f}% of its attention" in text
        assert f"{16 * map_.max():.1f} times an even share" in text

    def test_arrow_keys_move_the_point(self, opened):
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        opened.execute_script("document.getElementById('stage').focus()")
        send(opened, Keys.ARROW_RIGHT, Keys.ARROW_UP, Keys.ARROW_UP)
        assert_shows(opened, "generator", 0, 2, 5)
        send(opened, *[Keys.ARROW_LEFT] * 9)  # It stops at the border.
        assert_shows(opened, "generator", 0, 2, 0)
        ActionChains(opened).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
        assert_shows(opened, "generator", 0, 6, 0)

    def test_everything_is_reached_by_tab(self, opened):
        from selenium.webdriver.common.keys import Keys

        reached = []
        for _ in range(5):
            send(opened, Keys.TAB)
            reached.append(opened.execute_script("return document.activeElement.id || document.activeElement.name"))
        assert reached == ["stage", "network", "classes", "show", "sample"]
        send(opened, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert_shows(opened, "generator", 2, 4, 4)

    def test_touch_moves_the_point(self, opened):
        opened.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        )
        opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        for kind, (row, column) in (("touchStart", (1, 3)), ("touchMove", (5, 3))):
            x, y = at_cell(opened, row, column)
            opened.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
            assert_shows(opened, "generator", 0, row, column)
        opened.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert_shows(opened, "generator", 0, 5, 3)  # It stays when the finger is gone.
        assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")

    def test_class_filter_leaves_samples_of_the_class(self, opened):
        from selenium.webdriver.support.ui import Select

        select = Select(opened.find_element("id", "classes"))
        assert [option.text for option in select.options] == ["all", "0", "2", "5"]
        select.select_by_visible_text("2")
        visible = [i for i, image in enumerate(opened.find_elements("css selector", "#samples img")) if image.is_displayed()]
        assert visible == [2, 3, 4]
        assert_shows(opened, "generator", 2, 4, 4)
        select.select_by_visible_text("all")
        assert all(image.is_displayed() for image in opened.find_elements("css selector", "#samples img"))

    def test_network_switch_shows_the_others_map_and_gamma(self, opened):
        labels = opened.find_elements("css selector", "#networks label")
        assert [label.text.split() for label in labels] == [["Generator", "gamma", "0.250"], ["Discriminator", "gamma", "-0.500"]]
        labels[1].click()
        assert_shows(opened, "discriminator", 0, 2, 2)
        mouse(opened, *at_cell(opened, 6, 1))
        assert_shows(opened, "discriminator", 0, 3, 0)
        labels[0].click()
        assert_shows(opened, "generator", 0, 6, 1)

    def test_glow_can_be_turned_off(self, opened):
        opened.find_element("id", "show").click()
        assert not opened.find_element("id", "overlay").is_displayed()
        opened.find_element("id", "show").click()
        assert opened.find_element("id", "overlay").is_displayed()

    def test_everything_has_a_name(self, opened):
        assert opened.find_element("id", "stage").accessible_name.startswith("Sample 1, class 0")
        for element in opened.find_elements("css selector", "input, select"):
            assert element.accessible_name, element.get_attribute("outerHTML")

    def test_nothing_is_requested_and_nothing_fails(self, opened, document):
        assert not [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]
        messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
        urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
        assert document.as_uri() in urls
        assert not [url for url in urls if not url.startswith("data:") and url != document.as_uri()]
