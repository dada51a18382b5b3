import time, pytest, psutil
from test_harness import save, WIDGETS
KILL='''
import ipywidgets as w, os
b=w.Button(description="Die"); b.on_click(lambda _: os._exit(1)); b'''
T='''
import ipywidgets as w, asyncio
b=w.Button(description="Task")
async def f(): 1/0
b.on_click(lambda _: asyncio.create_task(f()) and None); b'''
def test_kill_cell(lab,tmp_path):
    with lab.open(save(tmp_path,"import os; os._exit(1)", "1+1")) as nb:
        nb.run_all(20)
def test_kill_cb(lab,tmp_path):
    with lab.open(save(tmp_path,KILL)) as nb:
        nb.run_all(20)
        nb.button("Die").click()
        nb.wait_until(lambda: False, "x",5)
def test_task(lab,tmp_path):
    with lab.open(save(tmp_path,T)) as nb:
        nb.run_all(20)
        nb.button("Task").click()
        nb.wait_until(lambda: False, "x",5)
def test_busy(lab,tmp_path):
    with lab.open(save(tmp_path,"while True: pass")) as nb:
        nb.run_all(3)
def test_nolabel(lab,tmp_path):
    with lab.open(save(tmp_path,WIDGETS, "VBox=widgets.VBox([widgets.Label('Level'),widgets.IntSlider(description='Only')]);VBox", "display(widgets.HTML('bad', layout='nonsense')) ")) as nb:
        nb.page.set_default_timeout(2000)
        try: nb.run_all()
        except AssertionError as e: print("E",e)
        try: nb.slider("Absent").drag_to(.1)
        except Exception as e: print("ABSENT",e)
        try: nb.slider("Level").drag_to(.1)
        except Exception as e: print("TWICE",e)
@pytest.mark.timeout(20)
def test_to1(lab,tmp_path):
    with lab.open(save(tmp_path,WIDGETS)) as nb:
        time.sleep(60)
@pytest.mark.timeout(20)
def test_to2(lab,tmp_path):
    with lab.open(save(tmp_path,WIDGETS)) as nb:
        nb.page.wait_for_timeout(60000)
@pytest.mark.timeout(20)
def test_to3(lab,tmp_path):
    with lab.open(save(tmp_path,WIDGETS)) as nb:
        nb.run_all()
