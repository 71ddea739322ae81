#include "dpt/io/transformers_config.h"

namespace dpt {

namespace {

// A field, or the default of transformers' DPTConfig where the file leaves it out or has null.
struct Fields {
  const json::Value& object;

  template <class T>
  T get(const char* name, T fallback) const {
    const json::Value* value = object.find(name);
    if (value == nullptr || *value == json::Value(nullptr)) return fallback;
    try {
      return convert(*value, fallback);
    } catch (const json::Error& error) {
      TORCH_CHECK_VALUE(false, "transformers config: field '", name, "': ", error.what());
    }
  }

  // A field that may have one value only.
  template <class T>
  void require(const char* name, T wanted) const {
    const T got = get(name, wanted);
    TORCH_CHECK_VALUE(got == wanted, "transformers config: ", name, " must be ",
                      json::dump(json::Value(wanted)), ", got ", json::dump(json::Value(got)),
                      "; torchdpt has no such network");
  }

 private:
  static int64_t convert(const json::Value& value, int64_t) { return value.as_int(); }
  static double convert(const json::Value& value, double) { return value.as_double(); }
  static bool convert(const json::Value& value, bool) { return value.as_bool(); }
  static std::string convert(const json::Value& value, const std::string&) {
    return value.as_string();
  }
  template <class T>
  static std::array<T, 4> convert(const json::Value& value, const std::array<T, 4>&) {
    const json::Array& list = value.as_array();
    if (list.size() != 4) {
      throw json::Error("wanted four values, got " + std::to_string(list.size()));
    }
    std::array<T, 4> result;
    for (size_t i = 0; i < 4; ++i) result[i] = convert(list[i], T{});
    return result;
  }
};

ReadMode read_mode(const std::string& name) {
  for (const ReadMode mode : {ReadMode::kIgnore, ReadMode::kAdd, ReadMode::kProject}) {
    if (name == to_string(mode)) return mode;
  }
  TORCH_CHECK_VALUE(false,
                    "transformers config: readout_type must be 'ignore', 'add' or 'project', got '",
                    name, "'");
}

// transformers counts how much finer than the patch grid a level is, 4 or 0.5; ours is its stride
// to the image.
int64_t stride_of(double factor, int64_t patch_size) {
  const double stride = factor > 0 ? static_cast<double>(patch_size) / factor : 0;
  TORCH_CHECK_VALUE(stride >= 1 && stride <= 1 << 16 &&
                        stride == static_cast<double>(static_cast<int64_t>(stride)),
                    "transformers config: reassemble_factors must divide patch_size ", patch_size,
                    ", got ", factor);
  return static_cast<int64_t>(stride);
}

}  // namespace

TransformersConfig parse_transformers_config(const json::Value& value) {
  const Fields fields{value};
  fields.require("is_hybrid", false);
  fields.require<std::string>("hidden_act", "gelu");
  fields.require("hidden_dropout_prob", 0.0);
  fields.require("attention_probs_dropout_prob", 0.0);
  fields.require<int64_t>("num_channels", 3);
  fields.require<int64_t>("head_in_index", -1);
  fields.require("add_projection", false);
  const json::Value* backbone = value.find("backbone_config");
  TORCH_CHECK_VALUE(
      backbone == nullptr || *backbone == json::Value(nullptr),
      "transformers config: backbone_config must be null, got another backbone; torchdpt reads the "
      "plain ViT networks of this family");

  Config config;
  config.image_size = fields.get<int64_t>("image_size", 384);
  config.patch_size = fields.get<int64_t>("patch_size", 16);
  config.width = fields.get<int64_t>("hidden_size", 768);
  config.heads = fields.get<int64_t>("num_attention_heads", 12);
  config.mlp_width = fields.get<int64_t>("intermediate_size", 3072);
  config.qkv_bias = fields.get("qkv_bias", true);
  config.layer_norm_eps = fields.get("layer_norm_eps", 1e-12);
  config.taps = fields.get("backbone_out_indices", std::array<int64_t, 4>{2, 5, 8, 11});
  config.depth = config.taps[3] + 1;
  config.readout = read_mode(fields.get<std::string>("readout_type", "project"));
  config.channels = fields.get("neck_hidden_sizes", std::array<int64_t, 4>{96, 192, 384, 768});
  const auto factors = fields.get("reassemble_factors", std::array<double, 4>{4, 2, 1, 0.5});
  for (size_t i = 0; i < 4; ++i) config.strides[i] = stride_of(factors[i], config.patch_size);
  config.features = fields.get<int64_t>("fusion_hidden_size", 256);
  const bool batch_norm = fields.get("use_batch_norm_in_fusion_residual", false);
  config.fusion_norm = batch_norm ? FusionNorm::kBatch : FusionNorm::kNone;
  fields.require("use_bias_in_fusion_residual", !batch_norm);
  config.check();
  const int64_t num_layers = fields.get<int64_t>("num_hidden_layers", 12);
  TORCH_CHECK_VALUE(num_layers >= config.depth && num_layers <= 1024,
                    "transformers config: num_hidden_layers must be in [", config.depth,
                    ", 1024], since backbone_out_indices names that many blocks, got ", num_layers);
  return {config, num_layers};
}

std::string to_transformers_config(const Config& config) {
  TORCH_CHECK_VALUE(
      !config.distilled,
      "save_checkpoint: transformers has no DPT with a distillation token; use layout 'torchdpt'");
  TORCH_CHECK_VALUE(
      config.head_features == 32,
      "save_checkpoint: the head of transformers' DPT has 32 hidden features, this model has ",
      config.head_features, "; use layout 'torchdpt'");
  json::Array factors;
  for (const int64_t stride : config.strides) {
    if (stride <= config.patch_size) {
      factors.emplace_back(config.patch_size / stride);
    } else {
      factors.emplace_back(static_cast<double>(config.patch_size) / static_cast<double>(stride));
    }
  }
  const bool batch_norm = config.fusion_norm == FusionNorm::kBatch;
  const auto list = [](const std::array<int64_t, 4>& values) {
    return json::Array(values.begin(), values.end());
  };
  const json::Object object{
      {"architectures", json::Array{"DPTForDepthEstimation"}},
      {"model_type", "dpt"},
      {"is_hybrid", false},
      {"image_size", config.image_size},
      {"patch_size", config.patch_size},
      {"num_channels", 3},
      {"hidden_size", config.width},
      {"num_hidden_layers", config.depth},
      {"num_attention_heads", config.heads},
      {"intermediate_size", config.mlp_width},
      {"hidden_act", "gelu"},
      {"hidden_dropout_prob", 0.0},
      {"attention_probs_dropout_prob", 0.0},
      {"qkv_bias", config.qkv_bias},
      {"layer_norm_eps", config.layer_norm_eps},
      {"backbone_config", nullptr},
      {"backbone_out_indices", list(config.taps)},
      {"readout_type", std::string(to_string(config.readout))},
      {"reassemble_factors", factors},
      {"neck_hidden_sizes", list(config.channels)},
      {"fusion_hidden_size", config.features},
      {"head_in_index", -1},
      {"use_batch_norm_in_fusion_residual", batch_norm},
      {"use_bias_in_fusion_residual", !batch_norm},
      {"add_projection", false},
  };
  return json::dump(object, 2) + "\n";
}

}  // namespace dpt
