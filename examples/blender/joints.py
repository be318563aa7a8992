"""Put the joints and the camera of a result into Blender, to show what person_NN.npz holds.

blender --python joints.py -- FOLDER
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import bpy
import numpy as np

for file in sorted(Path(sys.argv[-1]).glob("person_*.npz")):
    person = dict(np.load(file, allow_pickle=False))
    # The camera frame is x right, y down, z forward; Blender's world is x right, y away, z up.
    x, y, z = np.moveaxis(person["joints3d"] + person["transl"][:, None], -1, 0)
    places = np.stack([x, z, -y], axis=-1)
    for joint in range(24):
        empty = bpy.data.objects.new(f"{file.stem}_{joint:02d}", None)
        empty.empty_display_size = 0.05  # m
        bpy.context.collection.objects.link(empty)
        for time, place in zip(person["times"], places[:, joint], strict=True):
            empty.location = place
            empty.keyframe_insert("location", frame=time * person["fps"])

(width, height), (cx, cy) = person["image_size"], person["principal_point"]
camera = bpy.data.cameras.new("clip")
camera.sensor_fit, camera.sensor_width = "HORIZONTAL", 36  # mm
camera.lens = person["focal_length"] * 36 / width
camera.shift_x, camera.shift_y = (width / 2 - cx) / width, (cy - height / 2) / width
scene = bpy.context.scene
scene.camera = bpy.data.objects.new("clip", camera)
scene.camera.rotation_euler = (math.pi / 2, 0, 0)
scene.collection.objects.link(scene.camera)
scene.render.resolution_x, scene.render.resolution_y = round(width), round(height)
scene.render.fps = round(float(person["fps"]))
scene.render.fps_base = scene.render.fps / person["fps"]
