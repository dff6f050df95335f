import os, json, numpy as np, torch
from safetensors.torch import save_file
torch.manual_seed(0)
OUT=os.environ["OUT"]
def W(o,i,seed=0,std=0.02):
    g=torch.Generator().manual_seed(seed); return torch.randn(o,i,generator=g)*std
def dump(name, tensors, cfg, truth, meta):
    d=f"{OUT}/{name}"; os.makedirs(d,exist_ok=True)
    save_file({k:v.contiguous() for k,v in tensors.items()}, f"{d}/model.safetensors", metadata={"format":"pt"})
    json.dump(cfg,open(f"{d}/config.json","w"),indent=1,default=str)
    save_file({k:v.contiguous() for k,v in truth.items()}, f"{d}/truth.safetensors")
    json.dump(meta,open(f"{d}/META.json","w"),indent=1)
    print(name, {k:(str(v.dtype).replace('torch.',''),tuple(v.shape)) for k,v in tensors.items()})
E4M3=None
def f64(t): return t.to(torch.float64)
def e4m3_f64(t): return t.view(torch.float8_e4m3fn).to(torch.float32).to(torch.float64)
LUT=torch.tensor([0,.5,1,1.5,2,3,4,6,-0.,-.5,-1,-1.5,-2,-3,-4,-6],dtype=torch.float64)
def fp4_f64(p): # low nibble first
    u=p.view(torch.uint8).long(); return torch.stack([LUT[u&15],LUT[u>>4]],-1).flatten(-2)
def cmp(tag,ref,exact,dt=None):
    dt=dt or ref.dtype; e=exact.to(dt); n=(ref!=e).sum().item()
    d=(ref.double()-exact).abs().max().item()
    print(f"   {tag}: reference({dt}) vs RN(exact): {n}/{ref.numel()} differ; max|ref-exact|={d:.3e}")
    return n
