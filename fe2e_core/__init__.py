"""The FE2E method in plain torch: no ComfyUI, no diffusers, no training code.

Wang et al., "From Editor to Dense Geometry Estimator". Each module is one idea; start with
`packing.predict_latents`, which is the whole network side of the method.
"""
