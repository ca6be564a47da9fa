"""What a listing of machine code says is counted and held against budgets; no tool of CUDA's is needed for it."""

import pytest

from bench import machine, sass
from bench.machine import Code

# ------------------------------------------------------------------------------------ reading, without the tools

_LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;               /* 0x00000a00 */
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2.64] ;
        /*0020*/                   LDS R9, [R8] ;
        /*0030*/                   FFMA R4, R4, R5, R6 ;
        /*0040*/                   FFMA R5, R4, R5, R6 ;
        /*0050*/               @P0 BRA 0x20 ;
        /*0060*/                   LDGSTS.E.BYPASS.128 [R8], [R2.64] ;
        /*0070*/                   FFMA R5, R4, R5, R6 ;
        /*0080*/                   FFMA R6, R4, R5, R6 ;
        /*0090*/                   FFMA R7, R4, R5, R6 ;
        /*00a0*/                   HMMA.1688.F32 R4, R8, R6, R4 ;
        /*00b0*/               @P1 BRA `(0x60) ;
        /*00c0*/                   MUFU.RCP64H R5, R7 ;
        /*00d0*/                   F2F.F32.F64 R0, R2 ;
        /*00e0*/                   STG.E.64 [R2.64], R4 ;
        /*00f0*/              @!P2 BRA 0x10 ;
        /*0100*/                   EXIT ;
        /*0110*/                   BRA 0x110;
"""
_NOTES = """ptxas info    : Function properties for k
    24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 4160 bytes smem, 400 bytes cmem[0]"""


def test_the_hot_loop_is_the_innermost_with_the_most_products():
    body = machine.hot_loop(machine.parse(_LISTING))
    assert [text.split()[0] for text in body] == ["LDGSTS.E.BYPASS.128", "FFMA", "FFMA", "FFMA", "HMMA.1688.F32", "@P1"]
    assert machine.hot_loop([(0, "MOV R1, R2"), (16, "@P0 BRA 0x0"), (32, "BRA 0x20")]) == []


def test_a_listing_is_counted():
    code = machine.read("op[rule]/k/float32", 80, _NOTES, _LISTING)
    assert (code.kernel, code.dtype) == ("k", "float32")
    assert (code.registers, code.spills, code.local, code.shared) == (40, 20, 24, 4160)
    assert (code.fma, code.mma, code.float64, code.instructions) == (5, 1, 2, 18)
    assert code.wide == {"LDG": 2, "STG": 0, "LDS": 0, "STS": 0}
    assert code.accesses == {"LDG": 2, "STG": 1, "LDS": 1, "STS": 0}
    assert code.hot == (4, 6)
    with pytest.raises(RuntimeError, match="no machine code"):
        machine.read("op/k/float32", 80, _NOTES, "")


# ---------------------------------------------------------------------------------------------------- budgets

_BUDGETS = """
[defaults]
registers = 64
registers_float64 = 80
spills = 0
local = 0
vector = []
share = 0.0
share_float64 = 0.0
[kernels."product_*"]
registers = 100
share = 0.5
[kernels.product_ab]
vector = ["LDG"]
"""


def _budgets(tmp_path, text):
    path = tmp_path / "budgets.toml"
    path.write_text(text)
    return sass.Budgets(path)


def test_budgets_are_read(tmp_path):
    budgets = _budgets(tmp_path, _BUDGETS)
    assert budgets.of("moments") == budgets.defaults
    assert budgets.of("product_abt") == budgets.defaults._replace(registers=100, share=0.5)
    assert budgets.of("product_ab") == budgets.defaults._replace(registers=100, share=0.5, vector=["LDG"])
    assert budgets.unused(["product_abt", "moments"]) == ["product_ab"]


def test_the_form_for_many_models_has_the_budget_of_the_kernel():
    budgets = sass.Budgets()
    assert budgets.of("batched_product_ab_32x32") == budgets.of("product_ab_32x32") != budgets.defaults
    assert budgets.of("batched_product_ab_128x64").registers_float64 > budgets.of("product_ab_128x64").registers_float64


def test_a_kernel_with_wrapped_rules_has_the_budget_of_the_kernel_but_for_registers():
    budgets = sass.Budgets()
    for kernel in ("optimizer_update", "batched_optimizer_update"):
        plain, wrapped = budgets.of(kernel), budgets.of(f"wrapped_{kernel}")
        assert wrapped.registers_float64 > plain.registers_float64
        assert wrapped == plain._replace(registers_float64=wrapped.registers_float64) != budgets.defaults


@pytest.mark.parametrize("line", ["regsters = 3", 'vector = ["LDL"]'])
def test_a_budget_that_means_nothing(tmp_path, line):
    with pytest.raises(sass.BudgetError, match=r"product_ab names (regsters|LDL)"):
        _budgets(tmp_path, _BUDGETS.replace('vector = ["LDG"]', line))
    with pytest.raises(sass.BudgetError, match="defaults lacks spills"):
        _budgets(tmp_path, _BUDGETS.replace("spills = 0", ""))


def test_each_figure_has_a_limit():
    four = dict.fromkeys(machine.MEMORY, 0)
    code = Code("op/k/float32", 80, 64, 0, 0, 0, four, four, 0, 0, 0, (1, 4), 9)
    budget = sass.Budgets().defaults._replace(share=0.25)
    assert sass.breaches(code, budget, False) == []
    assert sass.breaches(code._replace(registers=65), budget, False) == ["65 registers, at most 64"]
    assert sass.breaches(code._replace(hot=(0, 0)), budget, False) == ["FMA share 0.00, at least 0.25"]
    double = code._replace(name="op/k/float64", registers=81, float64=5, hot=(0, 0))
    assert sass.breaches(double, budget, True) == ["81 registers, at most 80"]


# ----------------------------------------------------------------------------------------------- command line


def test_command_line(capsys):
    for arguments, message in (
        (["--arch", "75,10"], "10 is none of 75, 80"),
        (["--rules", "relu,rleu"], "no rule is called rleu"),
    ):
        with pytest.raises(SystemExit) as exited:
            sass.main(arguments)
        assert exited.value.code == 2
        assert message in capsys.readouterr().err


def test_what_is_missing_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sass, "why_not", lambda: "not found: ptxas")
    assert sass.main([]) == 2
    assert capsys.readouterr().err == "not found: ptxas\n"
    assert sass.main(["--json", str(tmp_path / "no" / "file")]) == 2
    assert "there is no folder" in capsys.readouterr().err
