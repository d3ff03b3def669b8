"""JupyterLab and a headless Chromium, as the browser tests and the README's screenshots use them."""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from llmops_workbench.cli import LAB_CONFIG

BIN = Path(sys.executable).parent

# Without these Chromium looks for its maker's hosts at every start.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"]


@contextmanager
def jupyter_lab(folder, **environment):
    "JupyterLab on loopback with a token, in `folder`; yields (address, token) and ends the server's own process afterwards."
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    token = secrets.token_hex(16)
    log = open(Path(folder) / "jupyter.log", "wb")
    server = subprocess.Popen(
        [BIN / "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", f"--IdentityProvider.token={token}",
         f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly"],
        cwd=folder, env={**os.environ, "JUPYTER_CONFIG_PATH": str(LAB_CONFIG), "JUPYTERLAB_SETTINGS_DIR": str(Path(folder) / "settings"), **environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=2).read()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"JupyterLab did not start; see {log.name}") from None
                time.sleep(0.2)
        yield address, token
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


@contextmanager
def browser_page(executable, width=1280, height=1400, offline=False):
    "A page in a headless Chromium; what the page asks for beyond loopback is refused and collected in `page.refused`."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET)
        context = browser.new_context(viewport={"width": width, "height": height}, offline=offline)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.refused = []

        def only_loopback(route):
            url = route.request.url
            if url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "file:")):
                route.continue_()
            else:
                page.refused.append(url)
                route.abort()
        page.route("**/*", only_loopback)
        try:
            yield page
        finally:
            browser.close()


class Lab:
    "A notebook open in JupyterLab: run it, restart it, look at it, as a person at the browser would."

    def __init__(self, page, address, token):
        self.page, self.address, self.token = page, address, token

    def open(self, path):
        "Open a notebook and wait until its kernel is there."
        self.page.goto(f"{self.address}/lab/tree/{path}?token={self.token}&reset")
        self.page.wait_for_function("window.jupyterapp && window.jupyterapp.restored", timeout=90_000)
        self.page.evaluate("() => window.jupyterapp.restored")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        self.page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area').catch(() => null)")
        self.wait_until_idle()

    def command(self, name):
        self.page.evaluate("name => window.jupyterapp.commands.execute(name)", name)

    def panel(self):
        return "window.jupyterapp.shell.currentWidget"

    def status(self):
        return self.page.evaluate(f"() => {self.panel()}.sessionContext?.session?.kernel?.status || 'none'")

    def wait_until_idle(self, timeout_s=240, settle=3):
        "Wait for the kernel to be idle on several looks in a row: between two cells it is idle for a moment."
        deadline, idle = time.monotonic() + timeout_s, 0
        while idle < settle:
            idle = idle + 1 if self.status() == "idle" else 0
            assert time.monotonic() < deadline, f"the kernel is still '{self.status()}' after {timeout_s} s"
            self.page.wait_for_timeout(200)

    def run_all(self, timeout_s=240):
        # The command's promise resolves when the last cell is done; waiting for it here would hide a kernel that hangs.
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.page.wait_for_timeout(500)
        self.wait_until_idle(timeout_s)

    def restart_kernel(self):
        self.page.evaluate(f"async () => {{ await {self.panel()}.sessionContext.session.kernel.restart(); }}")
        self.wait_until_idle()

    def save(self):
        self.command("docmanager:save")
        self.page.wait_for_timeout(500)

    def errors(self):
        "Texts of the error outputs in the notebook, and of widgets whose script failed."
        broken = self.page.get_by_text(re.compile("javascript error|Error displaying widget", re.I)).all_inner_texts()
        return broken + self.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error'], "
                                 ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts()

    def cell_screenshot(self, index, path):
        "Picture of one cell, output included."
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(index)
        cell.scroll_into_view_if_needed()
        self.page.wait_for_timeout(400)
        cell.screenshot(path=str(path))
