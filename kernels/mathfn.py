import math, builtins
import numpy as np, numba
CPU_OPTIONS = dict(fastmath={'nsz','arcp','contract','afn'}, error_model='numpy', nogil=True)
exp=np.exp; expm1=np.expm1; log=np.log; log1p=np.log1p; sqrt=np.sqrt; tanh=np.tanh; fabs=np.fabs
erf=np.vectorize(math.erf)
def sigmoid(x): return 1/(1+np.exp(-x))
def softplus(x): return np.logaddexp(0,x)
_N={}
for n in ('exp','expm1','log','log1p','sqrt','tanh','erf','fabs'):
    _N[id(globals()[n])]=n; _N[id(getattr(math,n))]=n
_N[id(sigmoid)]='sigmoid'; _N[id(softplus)]='softplus'; _N[id(abs)]='fabs'
def name_of(o): return _N.get(id(o))
def is_math_module(o): return o is math or o is np or getattr(o,'__name__','')==__name__
@numba.njit(**CPU_OPTIONS)
def _sig(x):
    one=type(x)(1) if False else x*0+1
    return one/(one+math.exp(-x))
@numba.njit(**CPU_OPTIONS)
def _sp(x): return max(x,x*0)+math.log1p(math.exp(-abs(x)))
def cpu(name,dtype):
    if name=='sigmoid': return _sig
    if name=='softplus': return _sp
    return getattr(math,name)
