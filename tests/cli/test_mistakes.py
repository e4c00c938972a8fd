"""What people type by mistake, of their own and from other programs: one line each, with advice."""

import shlex

import pytest

from tests.conftest import Command

OTHER_COMMANDS = ("models", "info", "replay", "verify", "decode", "train", "worker", "serve")
USAGE = """
red apple ‖ put the prompt in quotes: "red apple"
"cat" dog ‖ put the prompt in quotes: "cat dog"
“red apple” ‖ the shell reads straight quotes only: "red apple"
cat –steps 5 ‖ "–steps" has a dash: write --steps
cat —seed 5 ‖ "—seed" has a dash: write --seed
cat /? ‖ put the prompt in quotes
--seed 5 ‖ no prompt; try txt2img "red apple
-h 512 ‖ for a height of 512 pixels use -H 512
cat -w 512 -h 512 ‖ for a height of 512 pixels use -H 512
cat -w 512 ‖ no option "-w"; use --width or -W
cat --w 512 ‖ use --width or -W
cat --h 512 ‖ use --height or -H
cat --image-width 512 ‖ use --width or -W
cat --size 512x512 ‖ use -W 512 -H 512
cat --resolution 1024 ‖ use -W 512 -H 512
cat -W 512x768 ‖ for a size use -W 512 -H 768
cat -W 500 ‖ multiple of 8, got 500; the nearest: 496 or 504
cat -W 10 ‖ 64 … 8,192, got 10
cat -W 512px ‖ --width must be a whole number, got "512px"
cat --height -5 ‖ height must be 64 … 8,192
cat --width 512 --hieght 512 ‖ did you mean --height?
cat --ar 16:9 ‖ use a size, as -W 512 -H 288
cat --aspect-ratio 16:9 ‖ use a size, as -W 512 -H 288
cat -s 30 ‖ no option "-s"; use --steps, or --seed
cat -S 5 ‖ use --seed
cat --step 30 ‖ did you mean --steps
cat --stes 30 ‖ did you mean --steps?
cat --steps 30.5 ‖ --steps must be a whole number
cat --steps 30,40 ‖ several values take --sweep OPTION=30,40
cat --steps ten ‖ --steps must be a whole number
serve --count 3 ‖ leave out --count
cat --background redd ‖ did you mean red?
cat --transparent ‖ --transparent border makes the even ground
cat --transparent border -o a.jpg ‖ a JPEG file holds no transparency
cat --steps 0 ‖ steps must be 1 … 10,000
cat --steps ‖ --steps needs a value
cat --steps --seed 5 ‖ --steps needs a value, and --seed is an option
cat -o --overwrite ‖ -o needs a value, and --overwrite is an option
cat -n --steps 5 ‖ -n needs a value, and --steps is an option
cat --seed random ‖ left out, it is random
cat --seed 1.5 ‖ --seed must be a whole number
cat --seed=-5 ‖ seed must be 0 … 2^64-1
cat --seeds 1,2,3 ‖ use --sweep seed=1,2,3, or --seed and --count
cat --cfg seven ‖ --cfg must be a number, got "seven"
cat --cfg 7,5 ‖ write 7.5
cat --cfg=-1 ‖ cfg must be 0 … 1000, got -1
cat --cfg-scale abc ‖ --cfg must be a number
cat --guidance 7 ‖ use --cfg
cat --scale 7 ‖ use --cfg
cat --sampler eulr ‖ did you mean euler?
cat --sampler seeds_2 ‖ the nearest is dpm++sde
cat --sampler heunpp2 ‖ the nearest is heun
cat --sampler res_multistep_cfg_pp ‖ the nearest is euler_cfg++
cat --sampler ddim_uniform ‖ it is a schedule: --schedule ddim_uniform
cat --sampler karras ‖ it is a schedule: --schedule karras
cat --schedule euler ‖ it is a sampler: --sampler euler
cat --schedule gits ‖ the nearest is karras
cat --scheduler karras ‖ use --sampler and --schedule
cat --no-half ‖ use --dtype float32
cat --no-half-vae ‖ --dtype vae=float32 for the VAE alone
cat --fp16 ‖ use --dtype fp16
cat --dtype half ‖ did you mean fp16?
cat --dtype float64 ‖ did you mean float32?
cat --dtype int8 ‖ --quantize int8
cat --cpu ‖ use --device cpu
cat --use-cpu all ‖ use --device cpu
cat --gpu 0 ‖ use --device cuda
cat --device gpu ‖ did you mean cuda?
cat --device vulkan ‖ choose from cuda, mps, cpu
cat --max-memory 6 ‖ write 6GB
cat --upscale 2 ‖ --upscale lanczos:2
cat --enhance llama3 ‖ --enhance takes a URL with http://
cat --medvram ‖ use --max-memory 4GB
cat --low-vram ‖ use --max-memory 4GB
cat --xformers ‖ attention is fast by default
cat --opt-sdp-attention ‖ attention is fast by default
cat --threads 4 ‖ set OMP_NUM_THREADS=4
cat --n_samples 4 ‖ use --count, or --batch-size
cat --batch 4 ‖ use --count, or --batch-size
cat --batch-size 0 ‖ --batch-size must be at least 1
cat --num 4 ‖ use --count
cat -c 4 ‖ use --count
cat -b 4 ‖ use --count, or --batch-size
cat --count 0 ‖ count must be 1 … 100,000
cat -o x.pdf ‖ name it "x.png"
cat -o x.gif ‖ name it "x.png"
cat -o {sed}.png ‖ {seed}
cat --format bmp ‖ choose from png, jpeg, webp, avif
cat --format jpg -o x.png ‖ give one of them
cat --quality 200 ‖ --quality must be 1 … 100
cat --quality high ‖ --quality must be a whole number
cat --negative-promt ugly ‖ did you mean --negative?
cat --no ugly ‖ use --negative
cat --style anime ‖ write the style in the prompt
cat --img2img x.png ‖ use --image
cat --restore-faces ‖ there is no face restoration
cat --hypernetwork x ‖ hypernetworks are not supported
cat --nsfw ‖ no picture is filtered or marked
cat --lora-scale 0.5 ‖ use --lora FILE:0.8
cat --lora style:abc ‖ weights are numbers; write style:0.8
cat --lora a.safetensors:1:1:1 ‖ weights are numbers; write a.safetensors:0.8
cat --ti x ‖ use --embedding
"cat <lora:few-steps:abc>" ‖ "abc" is no weight; write 0.8
cat --prompts p.txt ‖ a prompt and --prompts; give one of them
cat --wildcards nofolder ‖ --wildcards "nofolder" is no folder
cat --sweep cfg ‖ say OPTION=VALUES, as cfg=1..5:0.5
cat --sweep cfg= ‖ has an empty value
cat --sweep colour=1,2 ‖ cannot vary "colour"
cat --sweep steps=1,2 --sweep steps=5 ‖ list all its values in one
cat --sweep-zip ‖ --sweep-zip goes with --sweep
cat --shard 3/2 ‖ must be like 2/8
cat --preview yes ‖ choose from auto, kitty
cat --animate mp4 ‖ webp, gif, png
cat --clip-skip 20 ‖ clip-skip must be 1 … 12
cat --deepcache 0 ‖ deepcache must be 1 … 100
cat --token-merging 1 ‖ token-merging must be 0 … 0.75
cat --eta 2 ‖ eta must be 0 … 1
cat --verbos ‖ did you mean --verbose?
cat -v ‖ use --verbose, or --version
cat --debug ‖ TXT2IMG_DEBUG=1
cat --config x.toml ‖ TXT2IMG_CONFIG names another file
cat --profile nope ‖ no profile "nope"
cat --api ‖ txt2img serve is a server
cat --port 7860 ‖ txt2img serve is a server
cat --hires-fix ‖ use --hires 2
cat --canny ‖ use --preprocess canny
cat --control-start 0.1 ‖ use --control MODEL:IMAGE:WEIGHT:START..END
cat --list-controlnets ‖ use txt2img models list
cat --control canny --image http://host/a.png ‖ --control is MODEL:IMAGE
cat --control-image a.png ‖ --control-image goes with --control MODEL, which is missing
cat --ip-adapter-scale 1 ‖ --ip-adapter-weight goes with --ip-adapter MODEL
cat --control a --control-image b --control-image c ‖ 2 of --control-image for 1 of --control
cat --list-models ‖ use txt2img models list
cat --list-samplers ‖ txt2img samplers lists them
cat --variation 5 ‖ use --subseed 7 --subseed-strength 0.2
cat --low-memory yes ‖ takes no value, such as yes
cat --offload yes ‖ choose auto, none, model or sequential
cat --keep-alive forever ‖ takes a time of 1s … 24h
cat --reject red ‖ choose from nan, black, flat
cat --on-error continue ‖ choose stop or skip
cat --compat automatic ‖ did you mean a1111?
cat --rng gpu ‖ rng must be cpu, nv
cat --tile z ‖ choose from none, x, y, xy
cat --fast ‖ txt2img --help lists them
cat -9 ‖ a prompt that begins with a hyphen goes last, after --
list models ‖ did you mean the command models list?
infoo x.png ‖ did you mean the command info?
pull sd15 ‖ did you mean the command models pull?
download sd15 ‖ did you mean the command models pull?
models ‖ txt2img models list|show|words
models lst ‖ did you mean list?
models download sd15 ‖ did you mean pull?
models show ‖ txt2img models show needs NAME
models pull ‖ txt2img models pull needs ID
models pull sd-1.5 ‖ did you mean sd15?
info ‖ txt2img info needs FILE
replay ‖ txt2img replay needs FILE
train ‖ txt2img train DATA --out FOLDER
train no --out m ‖ no data at "no"
worker start ‖ choose status or stop
replay --stepz 3 ‖ did you mean --steps?
"""
FAILURE = """
cat --model nomodel ‖ no model "nomodel"
cat --model sd15 ‖ txt2img models pull sd15
cat --model sd1.5 ‖ did you mean sd15?
cat --model SDXL ‖ did you mean sdxl?
cat --model ./missing.safetensors ‖ no file or folder "./missing.safetensors"
cat --ckpt model.ckpt ‖ use the model's .safetensors
cat --model https://civitai.com/models/1 ‖ download its .safetensors file, and give its path
cat --model https://hf.co/stabilityai/sdxl-turbo ‖ txt2img models pull stabilityai/sdxl-turbo
cat --lora nolora ‖ --lora: no file "nolora"
"cat <lora:style:0.8>" ‖ no LoRA "style"; give its file with --lora
cat --vae nothing ‖ --vae: no file "nothing"
cat --embedding nothing ‖ --embedding: no file "nothing"
--prompts no.txt ‖ cannot read "no.txt": no such file
--params-from no.png ‖ cannot read "no.png": no such file
cat --init-image no.png ‖ cannot read "no.png": no such file
info no.png ‖ cannot read "no.png": no such file
models show nope ‖ no model "nope"
models words xyzzy ‖ was never taught "xyzzy"
"""


def rows(text: str, code: int) -> list[tuple[str, int, str]]:
    pairs = [line.split(" ‖ ") for line in text.strip().splitlines()]
    return [(line, code, advice) for line, advice in pairs]


MISTAKES = [*rows(USAGE, 2), *rows(FAILURE, 1)]


@pytest.mark.parametrize(("line", "code", "advice"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_answered_in_one_line(
    line: str, code: int, advice: str, command: Command
) -> None:
    arguments = shlex.split(line)
    # should it be taken for no mistake, at least nothing is drawn
    dry = [] if arguments[0] in OTHER_COMMANDS else ["--dry-run"]
    done = command(*dry, *arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith("Error: ") and done.err.count("\n") == 1, done.err
    assert advice in done.err


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("--sampler EulerDiscreteScheduler", "30 steps of euler,"),
        ("--sampler dpmpp_2m_sde_gpu", "of dpm++2m_sde,"),
        ("--sampler UniPCMultistepScheduler", "of unipc,"),
        ("--sampler uni_pc_bh2 --schedule sgm_uniform", "of unipc, schedule sgm_uniform"),
        ('--sampler "DPM++ 2M Karras"', "of dpm++2m, schedule karras"),
        (
            "--num_inference_steps 7 --guidance_scale 3",
            "7 steps of dpm++2m, schedule trailing, cfg 3",
        ),
        ("--schedule ddim_uniform", "schedule ddim_uniform"),
    ],
)
def test_other_programs_words_are_understood(line: str, option: str, command: Command) -> None:
    done = command("cat", "--dry-run", "-o", "o/", *shlex.split(line))
    assert done.code == 0 and option in done.err


def test_the_list_is_long_enough() -> None:
    assert len({line for line, _, _ in MISTAKES}) >= 150


@pytest.mark.parametrize("flag", ["-h", "-help", "-?"])
def test_short_help_is_one_screen(
    flag: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = command(flag)
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) <= 24 and max(map(len, lines)) <= 80
    assert sum(line.startswith("  -") for line in lines) == 20
    assert "--help" in lines[-1]


def test_short_help_of_other_commands_is_their_help(command: Command) -> None:
    for words in (["info"], ["models"], ["models", "list"]):
        assert command(*words, "-h").out == command(*words, "--help").out != ""
