from common import *
import hqq
from hqq.core.quantize import Quantizer, BaseQuantizeConfig, HQQLinear
V=f"hqq {hqq.__version__}, torch {torch.__version__}"
for bits,gs,axis in ((4,64,1),(4,64,0),(3,64,1),(8,64,1),(2,16,1)):
    w=W(64,256,70)
    Wq,m=Quantizer.quantize(w,nbits=bits,group_size=gs,axis=axis,device="cpu",compute_dtype=torch.float16,optimize=True)
    ref=Quantizer.dequantize(Wq,m); print("hqq",bits,gs,axis,Wq.dtype,tuple(Wq.shape),{k:(str(v.dtype),tuple(v.shape)) if torch.is_tensor(v) else v for k,v in m.items()})
    u=Wq.long() if Wq.dtype==torch.uint8 else Wq.long()&0xffffffff
    # hqq packing: rows split into bands; 4bit: high nibble = first half of rows
    if bits==8: c=u
    elif bits==4: c=torch.cat([u>>4&15,u&15],0)
    elif bits==2: c=torch.cat([u>>6&3,u>>4&3,u>>2&3,u&3],0)
    elif bits==3: c=torch.cat([u>>27&7,u>>24&7,u>>21&7,u>>18&7,u>>15&7,u>>12&7,u>>9&7,u>>6&7,u>>3&7,u&7],0)
    n=w.numel()//gs; c=c[:(n if axis==1 else gs)]
    ex=((c.double()-m["zero"].double())*m["scale"].double()).reshape(w.shape)
    cmp("hqq -> "+str(ref.dtype),ref,ex); r2=((c.to(ref.dtype)-m["zero"])*m["scale"]).reshape(w.shape); print("   two-rounding f16 order equals lib:",bool((r2==ref).all()))
    dump(f"hqq_{bits}b_g{gs}_axis{axis}",{"m.W_q":Wq,"m.scale":m["scale"],"m.zero":m["zero"]},{"quantization_config":{"quant_method":"hqq","quant_config":{"weight_quant_params":{"nbits":bits,"group_size":gs,"axis":axis}}},"shape":list(w.shape),"packing":m.get("packing")},{"exact_f64":ex,"ref":ref},{"made_by":V})
