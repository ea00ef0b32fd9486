//! The whole road once, on pictures drawn for the purpose: `make demo`.
//!
//! Draws scenes, builds a cache from their files, serves it, and asks it over gRPC with a picture, a text, a voice, and both. For
//! each query it prints the neighbours with their weights, and how near the query is to the nearest real picture before
//! and after; then it lets the decoder say what the text and the voice are about, without the cache and with it. It is
//! also the shortest example of a Rust client.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;
use viscache::serve::proto::cache_service_client::CacheServiceClient;
use viscache::serve::proto::generate_service_client::GenerateServiceClient;
use viscache::serve::proto::{
    BlendParams, CacheMode, Conditioning, EnhanceRequest, GenerateRequest, Instruction, Media, Part, Prompt,
    Query, Sampling, SearchRequest, generate_event, media, part, prompt,
};

const SCENES: &str = "5000";
const CACHE: &str = "scenes";
/// Three words by a speech synthesiser.
const SPEECH: &[u8] = include_bytes!("../assets/nano/large_orange_cross.wav");

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let folder = demo_folder()?;
    let (scenes, store) = (folder.join("scenes"), folder.join("store"));
    let path = |p: &Path| p.to_string_lossy().into_owned();

    println!("1. Draw {SCENES} pictures, and one more that the cache will not hold");
    let unseen = folder.join("unseen");
    draw(&scenes, &["--count", SCENES])?;
    draw(&unseen, &["--set", "test", "--count", "1"])?;

    println!("\n2. Build a cache from the files: decode, embed, store, index");
    let arguments = ["build", "--store", &path(&store), "--cache", CACHE, "--images", &path(&scenes)];
    if run("index-builder", &arguments).is_err() {
        // An earlier version of this program may have left a cache that this one cannot go on with.
        std::fs::remove_dir_all(&store).context("the cache cannot be built")?;
        run("index-builder", &arguments)?;
    }

    println!("\n3. Serve it, and ask over gRPC");
    let (server, address) = serve(&store)?;
    let captions = captions(&scenes)?;
    let picture = unseen.join("00000000.png");
    let asked = self::captions(&unseen)?.remove("00000000.png").context("the test picture has no caption")?;
    let image = || -> anyhow::Result<media::Kind> { Ok(media::Kind::Image(std::fs::read(&picture)?.into())) };
    let text = |text: &str| media::Kind::Text(text.to_owned());
    let small = "a small red circle at the left on a grey background";
    let queries = [
        (format!("a picture the cache has never seen ({asked})"), vec![(image()?, 1.0)]),
        (format!("the text “{small}”"), vec![(text(small), 1.0)]),
        ("a voice that says “large orange cross”".to_owned(), vec![(media::Kind::Audio(SPEECH.into()), 1.0)]),
        (
            "that picture (weight 0.5) and the text “a large cyan star on a striped background” (0.5)"
                .to_owned(),
            vec![(image()?, 0.5), (text("a large cyan star on a striped background"), 0.5)],
        ),
    ];
    let mut client = CacheServiceClient::connect(format!("http://{address}")).await?;
    let mut figures = Vec::new();
    for (name, parts) in queries {
        figures.push((name.clone(), ask(&mut client, &name, parts, &captions).await?));
    }

    println!("\n4. Ask the decoder what it is, without the cache and with it");
    let mut decoder = GenerateServiceClient::connect(format!("http://{address}")).await?;
    let voice = || media::Kind::Audio(SPEECH.into());
    let asked = [
        (format!("the text “{small}”"), "Generate caption of this image", text(small)),
        ("the voice that says “large orange cross”".to_owned(), "Name the object.", voice()),
    ];
    for (about, question, input) in asked {
        let [off, on] = answers(&mut decoder, question, input).await?;
        println!("\n   “{question}” about {about}\n     cache off: {off}\n     cache on:  {on}");
    }
    drop(server);

    println!(
        "\nWhat changed: how near each query is to the nearest real picture (cosine, 1 = the same direction)\n"
    );
    println!("  before   after");
    for (name, (before, after)) in &figures {
        println!("  {before:>6.3}  {after:>6.3}   {name}");
    }
    println!(
        "\nA decoder trained on picture embeddings only has never seen anything as far from pictures as the text is before.\n\
         Be fair to it: this model's text encoder is built to have the gap to pictures that CLIP's has, and by CLIP's own\n\
         causes (a logit scale of 100, captions that tell only a part). An encoder without a gap gains nothing.\n\
         `viscache evaluate nano` prints how often answers are right, without the cache and with it."
    );
    println!(
        "\nPictures and cache stay in {}, so that the next demo is quick. To ask it yourself:\n\n   {} enhance --store {} --text \"a large cyan star\"",
        folder.display(),
        program("viscache")?.display(),
        store.display()
    );
    Ok(())
}

/// Draws pictures, unless an earlier demo did: their list is written last.
fn draw(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    if folder.join("captions.jsonl").is_file() {
        println!("   (they are in {})", folder.display());
        return Ok(());
    }
    run("index-builder", &[&["scenes", "--out", &folder.to_string_lossy()], arguments].concat())
}

/// Enhances one query and prints how it came about; returns the cosines to the nearest picture before and after.
async fn ask(
    client: &mut CacheServiceClient<tonic::transport::Channel>,
    name: &str,
    parts: Vec<(media::Kind, f64)>,
    captions: &HashMap<String, String>,
) -> anyhow::Result<(f32, f32)> {
    let part = |(kind, weight)| Part {
        content: Some(part::Content::Media(Media { kind: Some(kind) })),
        weight: Some(weight),
    };
    let query = Query { parts: parts.into_iter().map(part).collect(), ..Query::default() };
    let request = EnhanceRequest {
        cache: CACHE.into(),
        queries: vec![query.clone()],
        blend: Some(BlendParams { top_k: Some(10), temperature: Some(20.0), weight: Some(0.5) }),
        return_neighbors: true,
        ..Default::default()
    };
    let reply = client.enhance(request).await?.into_inner();
    let result = reply.results.first().context("one query, one result")?;
    if let Some(status) = result.status.as_ref().filter(|status| status.code != 0) {
        bail!("the server refused {name}: {}", status.message);
    }
    println!("\n   Query: {name}\n");
    println!("   weight   score  neighbour");
    for neighbour in result.neighbors.iter().take(5) {
        let file = neighbour.uri.rsplit('/').next().unwrap_or_default();
        let caption = captions.get(file).map_or("", String::as_str);
        println!("   {:>6.3}  {:>6.3}  {file}: {caption}", neighbour.weight, neighbour.score);
    }
    println!("   … and {} more", result.neighbors.len().saturating_sub(5));

    let enhanced = reply.vectors.context("the reply has no vectors")?;
    let search =
        SearchRequest { cache: CACHE.into(), vectors: Some(enhanced), top_k: Some(1), ..Default::default() };
    let nearest = client.search(search).await?.into_inner();
    let after = nearest
        .results
        .first()
        .and_then(|r| r.neighbors.first())
        .context("the cache has a nearest item")?
        .score;
    // The mixed query is shorter than 1; its cosine is the score over its length, which one more search tells.
    let before = before(client, query).await?;
    println!("   cosine to the nearest picture: {before:.3} before, {after:.3} after");
    Ok((before, after))
}

/// What the decoder says without the cache and with it.
async fn answers(
    client: &mut GenerateServiceClient<tonic::transport::Channel>,
    question: &str,
    input: media::Kind,
) -> anyhow::Result<[String; 2]> {
    let content = Some(part::Content::Media(Media { kind: Some(input) }));
    let query = Query { parts: vec![Part { content, weight: None }], ..Query::default() };
    let instruction = Instruction { text: question.into(), input: String::new() };
    let request = GenerateRequest {
        conditioning: Some(Conditioning {
            prompt: Some(Prompt { prompt: Some(prompt::Prompt::Instruction(instruction)) }),
            query: Some(query),
            cache_mode: CacheMode::Compare.into(),
            cache: CACHE.into(),
            ..Default::default()
        }),
        sampling: Some(Sampling { temperature: Some(0.0), ..Default::default() }),
        ..Default::default()
    };
    let mut events = client.generate(request).await?.into_inner();
    let mut said = [String::new(), String::new()];
    while let Some(event) = events.message().await? {
        if let Some(generate_event::Event::Summary(summary)) = event.event {
            said[usize::from(event.cached)] = summary.text;
        }
    }
    Ok(said)
}

/// Cosine of the query as it was to the nearest picture: the blend with weight 0 is the query itself, made unit.
async fn before(
    client: &mut CacheServiceClient<tonic::transport::Channel>,
    query: Query,
) -> anyhow::Result<f32> {
    let blend = BlendParams { weight: Some(0.0), ..Default::default() };
    let request = EnhanceRequest {
        cache: CACHE.into(),
        queries: vec![query],
        blend: Some(blend),
        ..Default::default()
    };
    let unit = client.enhance(request).await?.into_inner().vectors;
    let search = SearchRequest { cache: CACHE.into(), vectors: unit, top_k: Some(1), ..Default::default() };
    let nearest = client.search(search).await?.into_inner();
    Ok(nearest
        .results
        .first()
        .and_then(|r| r.neighbors.first())
        .context("the cache has a nearest item")?
        .score)
}

/// Captions by file name.
fn captions(folder: &Path) -> anyhow::Result<HashMap<String, String>> {
    let text = std::fs::read_to_string(folder.join("captions.jsonl"))?;
    let pair = |line: &str| -> anyhow::Result<(String, String)> {
        let line: Value = serde_json::from_str(line)?;
        let field = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        Ok((field("file"), field("caption")))
    };
    text.lines().map(pair).collect()
}

/// A server that ends with its handle.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

fn serve(store: &Path) -> anyhow::Result<(Server, String)> {
    let arguments =
        ["serve", "--store", &store.to_string_lossy(), "--listen", "127.0.0.1:0", "--log", "warn"];
    println!("   $ viscache {}", arguments.join(" "));
    let mut server =
        Server(Command::new(program("viscache")?).args(arguments).stdout(Stdio::piped()).spawn()?);
    let output = server.0.stdout.take().context("the server's output is a pipe")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on ").context("the server did not start")?.to_owned();
    Ok((server, address))
}

fn run(name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    println!("   $ {name} {}", arguments.join(" "));
    let status = Command::new(program(name)?).args(arguments).status()?;
    if !status.success() {
        bail!("`{name}` failed");
    }
    Ok(())
}

/// A program of this project, beside this one.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folder =
        here.parent().and_then(Path::parent).context("an example lies two folders below the programs")?;
    let program = folder.join(name);
    if !program.is_file() {
        bail!("{} is not built; run `cargo build --workspace` first", program.display());
    }
    Ok(program)
}

/// Beside the profiles' folders in cargo's target folder.
fn demo_folder() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe()?;
    let target =
        here.ancestors().nth(3).context("an example lies three folders below cargo's target folder")?;
    let folder = target.join("demo");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}
